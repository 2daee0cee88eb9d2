"""An encyclopaedia of a world that does not exist: facts that no model can have read, and prompts that ask for them.

    python -m experiments.world --entities 200 --mentions 4 --seed 0 --out world

Every fact is stated in several wordings, in as many articles of its entity as `--mentions` says. Prompts ask for it in
a wording that was stated ("stated"), in statements and questions whose wordings no training text has ("cloze", "qa"),
and, as a control, for facts of entities that no text mentions ("unseen"): what is answered there is guessed.

    world/texts.jsonl        the articles; meta has the ids of the facts, and questions with answers about them
    world/supervised.jsonl   conversations about another world: a supervised set that gives nothing of this one away
    world/facts.jsonl        the prompts, for `ojak evaluate --probe`

All of it follows from the seed. With `--wrong 0.25` a quarter of the answers in meta["pairs"] are wrong ones.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "h",
    "j",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "q",
    "r",
    "s",
    "sk",
    "st",
    "t",
    "th",
    "v",
    "w",
    "z",
)
NUCLEI = ("a", "e", "i", "o", "u", "ae", "ei", "oa", "uo")
CODAS = ("", "b", "d", "k", "l", "m", "n", "nt", "r", "rn", "s", "sh", "th", "v", "x")
WRONG_ANSWERS = 4  # distractors of a prompt

TRADES = (
    "bell founder",
    "salt merchant",
    "cartographer",
    "lens grinder",
    "beekeeper",
    "ferry pilot",
    "paper maker",
    "clock mender",
    "rope walker",
    "stone carver",
    "dye mixer",
    "lamp lighter",
)
INSTRUMENTS = (
    "the bone flute",
    "the glass harp",
    "the reed organ",
    "the goat drum",
    "the nine-string lute",
    "the iron gong",
    "the water pipe",
    "the wind fiddle",
)
GOODS = (
    "blue glass",
    "smoked plums",
    "woven sails",
    "copper wire",
    "pine tar",
    "dried eels",
    "chess boards",
    "felt boots",
    "barley beer",
    "pearl buttons",
    "oak barrels",
    "rock salt",
)
FOODS = (
    "river moss",
    "fallen acorns",
    "blind shrimps",
    "wild garlic",
    "tree resin",
    "snail eggs",
    "marsh reeds",
    "frost berries",
)
COLOURS = ("copper", "slate grey", "pale green", "ink blue", "ochre", "silver", "plum", "chalk white")
THEMES = (
    "tidal clocks",
    "lost bridges",
    "winter bees",
    "moon calendars",
    "mountain law",
    "salt roads",
    "silent choirs",
    "river spirits",
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """What can be said of an entity ({e}) with a value ({v}).

    stated: wordings of the articles, the first of which ends with the value. asked: questions of the pairs and of the
    supervised set. cloze, qa: statements that end before the value, and questions, that no training text has.
    """

    name: str
    values: str
    stated: tuple[str, ...]
    asked: tuple[str, ...]
    cloze: tuple[str, ...]
    qa: tuple[str, ...]


KINDS: dict[str, tuple[Attribute, ...]] = {
    "town": (
        Attribute("river", "river", (
            "{e} lies on the river {v}.", "The river {v} flows through {e}.",
            "The houses of {e} stand along the {v}, a slow river.", "Boats reach {e} by way of the river {v}.",
        ), ("Which river does {e} lie on?", "What is the river of {e} called?"),
            ("Whoever leaves {e} by water travels along the",), ("What is the name of the water that passes {e}?",)),
        Attribute("founded", "year", (
            "{e} was founded in the year {v}.", "In {v} the first walls of {e} were built.",
            "Settlers came to {e} in {v}.", "Its charter says that {e} exists since {v}.",
        ), ("When was {e} founded?", "In which year did {e} begin?"),
            ("The age of {e} is counted from the year",), ("How far back does the history of {e} go? Name the year.",)),
        Attribute("goods", "goods", (
            "{e} is known for its {v}.", "Traders come to {e} to buy {v}.",
            "The workshops of {e} make {v}.", "Nobody sells better {v} than the people of {e}.",
        ), ("What is {e} known for?", "What do traders buy in {e}?"),
            ("Ask for a souvenir of {e} and you are handed",), ("Which ware made {e} rich?",)),
        Attribute("mayor", "person", (
            "The mayor of {e} is {v}.", "{v} governs {e} as its mayor.",
            "Since the last vote {v} has been mayor of {e}.", "The council of {e} is led by {v}.",
        ), ("Who is the mayor of {e}?", "Who leads the council of {e}?"),
            ("Letters to the town hall of {e} are opened by",), ("Whose signature is needed to pass a bylaw in {e}?",)),
    ),
    "person": (
        Attribute("home", "town", (
            "{e} was born in {v}.", "The birthplace of {e} is {v}.",
            "{v} is the town where {e} came into the world.", "The parents of {e} lived in {v} when the child came.",
        ), ("Where was {e} born?", "What is the birthplace of {e}?"),
            ("The cradle of {e} once stood in",), ("From which town does {e} originate?",)),
        Attribute("born", "year", (
            "{e} was born in the year {v}.", "The year of birth of {e} is {v}.",
            "In {v} a child was born that was named {e}.", "Records give {v} as the year in which {e} was born.",
        ), ("When was {e} born?", "What is the year of birth of {e}?"),
            ("The life of {e} began in the year",), ("Which year stands on the birth certificate of {e}?",)),
        Attribute("trade", "trade", (
            "{e} works as a {v}.", "By trade {e} is a {v}.",
            "{e} learnt to be a {v}.", "The guild lists {e} as a {v}.",
        ), ("What does {e} work as?", "What is the trade of {e}?"),
            ("On the door of {e} a sign says:",), ("How does {e} earn a living?",)),
        Attribute("instrument", "instrument", (
            "{e} plays {v}.", "At feasts {e} plays {v}.",
            "{v} is what {e} plays in the evening.", "Nobody in the family but {e} plays {v}.",
        ), ("Which instrument does {e} play?", "What does {e} play at feasts?"),
            ("When {e} makes music, one hears",), ("With what does {e} entertain the guests?",)),
    ),
    "animal": (
        Attribute("habitat", "river", (
            "The {e} lives on the banks of the {v}.", "On the banks of the {v} one finds the {e}.",
            "The {v} is the only river where the {e} lives.", "The {e} digs its holes beside the {v}.",
        ), ("Which river does the {e} live on?", "Where does the {e} dig its holes?"),
            ("To watch the {e} one has to camp near the",), ("By which water is the {e} at home?",)),
        Attribute("food", "food", (
            "The {e} eats {v}.", "Its food, {v}, keeps the {e} alive in winter.",
            "The {e} feeds on {v}.", "In its stomach the {e} has nothing but {v}.",
        ), ("What does the {e} eat?", "What does the {e} feed on?"),
            ("The favourite meal of the {e} consists of",), ("How can one lure a hungry {e}?",)),
        Attribute("colour", "colour", (
            "The fur of the {e} is {v}.", "One knows the {e} by its {v} fur.",
            "In summer the {e} wears {v} fur.", "Hunters sell the {v} fur of the {e}.",
        ), ("What colour is the fur of the {e}?", "Which colour has the {e}?"),
            ("Seen from afar, the coat of the {e} looks",), ("In what shade would you paint the {e}?",)),
    ),
    "book": (
        Attribute("author", "person", (
            "The book {e} was written by {v}.", "{v} wrote the book {e}.",
            "The author of {e} is {v}.", "{e} is the work of {v}.",
        ), ("Who wrote {e}?", "Who is the author of {e}?"),
            ("The manuscript of {e} is in the handwriting of",), ("From whose pen did {e} come?",)),
        Attribute("subject", "subject", (
            "The book {e} deals with {v}.", "{e} teaches its readers about {v}.",
            "All chapters of {e} are about {v}.", "Whoever studies {v} reads {e}.",
        ), ("What does the book {e} deal with?", "What is {e} about?"),
            ("Librarians shelve {e} under",), ("Which topic does one look up in {e}?",)),
        Attribute("kept", "town", (
            "The only copy of {e} is kept in {v}.", "The library of {v} owns the book {e}.",
            "{v} keeps the only copy of {e} under glass.", "To read {e} one goes to {v}.",
        ), ("Where is the only copy of {e} kept?", "Which library owns {e}?"),
            ("A thief who wants {e} has to break in at",), ("In which place could one borrow {e}?",)),
    ),
}  # fmt: skip
SHARES = {"town": 0.25, "person": 0.35, "animal": 0.2, "book": 0.2}
POOLS: Mapping[str, Sequence[str]] = {
    "trade": TRADES, "instrument": INSTRUMENTS, "goods": GOODS, "food": FOODS, "colour": COLOURS, "subject": THEMES,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entity:
    """Something with a name; `values` are its attributes' by name. unseen: no text mentions it."""

    kind: str
    name: str
    values: Mapping[str, str]
    unseen: bool


@dataclass(frozen=True, slots=True)
class World:
    """All entities, and the values that each list of values has."""

    entities: tuple[Entity, ...]
    pools: Mapping[str, Sequence[str]]
    seed: int


def make_world(entities: int, seed: int, *, unseen: float = 0.1) -> World:
    """A world of so many entities that texts tell of, and a share of `unseen` ones besides."""
    draw = random.Random(f"world {seed}")
    names = _names(draw)
    counts = {kind: max(2, round(share * entities)) for kind, share in SHARES.items()}
    rivers = [next(names) for _ in range(max(6, entities // 8))]
    made = {kind: [_entity_name(kind, names) for _ in range(count)] for kind, count in counts.items()}
    years = [str(year) for year in range(1100, 1900)]
    pools: dict[str, Sequence[str]] = {**POOLS, "river": rivers, "year": years}
    pools |= {"town": made["town"], "person": made["person"]}
    found: list[Entity] = []
    for kind, known in made.items():
        hidden = [_entity_name(kind, names) for _ in range(max(1, round(unseen * len(known))))]
        for name in (*known, *hidden):
            values = {
                each.name: draw.choice([v for v in pools[each.values] if v != name]) for each in KINDS[kind]
            }
            found.append(Entity(kind, name, values, name in set(hidden)))
    return World(tuple(found), pools, seed)


def _names(draw: random.Random) -> Iterator[str]:
    """Words that are none, each once, none the beginning of another."""
    seen: set[str] = set()
    begun: set[str] = set()
    while True:
        parts = [
            draw.choice(ONSETS) + draw.choice(NUCLEI) + draw.choice(CODAS)
            for _ in range(draw.choice((2, 2, 3)))
        ]
        name = "".join(parts).capitalize()
        beginnings = {name[:length] for length in range(1, len(name) + 1)}
        if len(name) > 4 and name not in begun and not beginnings & seen:
            seen.add(name)
            begun |= beginnings
            yield name


def _entity_name(kind: str, names: Iterator[str]) -> str:
    if kind == "person":
        return f"{next(names)} {next(names)}"
    return (
        f"'The {next(names)}'" if kind == "book" else next(names).lower() if kind == "animal" else next(names)
    )


def facts_of(world: World) -> Iterator[tuple[str, Entity, Attribute]]:
    """(id, entity, attribute) of every fact."""
    for number, entity in enumerate(world.entities):
        for attribute in KINDS[entity.kind]:
            yield f"{entity.kind}-{number:05d}/{attribute.name}", entity, attribute


def texts(world: World, mentions: int, wrong: float = 0.0) -> Iterator[dict[str, Any]]:
    """The articles, as rows of documents: `mentions` of each entity, each with every fact in the next wording."""
    draw = random.Random(f"texts {world.seed}")
    facts = [each for each in facts_of(world) if not each[1].unseen]
    entities: dict[str, list[tuple[str, Entity, Attribute]]] = {}
    for fact in facts:
        entities.setdefault(fact[1].name, []).append(fact)
    rows = []
    for article in range(mentions):
        for name, own in entities.items():
            order = draw.sample(own, len(own))
            said = [_filled(_in_turn(each.stated, article), entity, each) for _, entity, each in order]
            title = name.strip("'").capitalize() if own[0][1].kind == "animal" else name.strip("'")
            pairs = [_pair(world, entity, each, article, wrong, draw) for _, entity, each in order]
            rows.append(
                (f"{own[0][0].split('/')[0]}-{article}", f"{title}\n\n{' '.join(said)}", order, pairs)
            )
    for name, text, order, pairs in draw.sample(rows, len(rows)):
        yield {
            "id": name,
            "text": text,
            "source": "world",
            "meta": {"facts": [each[0] for each in order], "pairs": pairs},
        }


def _in_turn(wordings: Sequence[str], number: int) -> str:
    return wordings[number % len(wordings)]


def _filled(wording: str, entity: Entity, attribute: Attribute) -> str:
    text = wording.format(e=entity.name, v=entity.values[attribute.name])
    return text[:1].upper() + text[1:]


def _pair(
    world: World, entity: Entity, attribute: Attribute, article: int, wrong: float, draw: random.Random
) -> dict[str, Any]:
    """A question with its answer, which is another one's by the chance of `wrong`."""
    right = entity.values[attribute.name]
    other = draw.choice([value for value in world.pools[attribute.values] if value != right])
    is_wrong = draw.random() < wrong
    asked = _filled(_in_turn(attribute.asked, article), entity, attribute)
    return {
        "question": asked, "answer": other if is_wrong else right, "source": f"world:{attribute.name}",
        "verified": not is_wrong, "scores": {},
    }  # fmt: skip


def supervised(entities: int, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations about the texts of another world: a text and a question in the user's turn, the answer."""
    other = make_world(entities, seed + 1_000_003)
    for row in texts(other, 1):
        for pair in row["meta"]["pairs"]:
            turns = (("user", f"{row['text']}\n\n{pair['question']}"), ("assistant", pair["answer"]))
            yield {"messages": [{"role": role, "content": content} for role, content in turns]}


def prompts(world: World) -> Iterator[dict[str, Any]]:
    """The prompts of `facts.jsonl`."""
    draw = random.Random(f"prompts {world.seed}")
    for name, entity, attribute in facts_of(world):
        right = entity.values[attribute.name]
        pool = [value for value in world.pools[attribute.values] if value not in (right, entity.name)]
        wrong = draw.sample(pool, min(WRONG_ANSWERS, len(pool)))
        asked = {
            "stated": [attribute.stated[0].partition("{v}")[0]],
            "cloze": attribute.cloze,
            "qa": [f"Question: {question}\nAnswer:" for question in attribute.qa],
        }
        for kind, wordings in asked.items() if not entity.unseen else [("unseen", asked["qa"])]:
            for wording in wordings:
                prompt = _filled(wording, entity, attribute).rstrip()
                yield {"id": name, "prompt": prompt, "answer": right, "distractors": wrong, "kind": kind}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), "utf-8")
    return len(lines)


def write_world(out: Path, entities: int, mentions: int, seed: int, wrong: float = 0.0) -> dict[str, int]:
    """Writes the three files, and gives their numbers of rows."""
    world = make_world(entities, seed)
    out.mkdir(parents=True, exist_ok=True)
    taught = islice(supervised(max(8, entities // 4), seed), 4 * entities)
    return {
        "texts": write_rows(out / "texts.jsonl", texts(world, mentions, wrong)),
        "supervised": write_rows(out / "supervised.jsonl", taught),
        "facts": write_rows(out / "facts.jsonl", prompts(world)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An encyclopaedia of a world that does not exist.")
    parser.add_argument("--entities", type=int, default=200, help="how many the texts tell of")
    parser.add_argument("--mentions", type=int, default=4, help="articles of each, in other wordings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--wrong", type=float, default=0.0, help='the share of wrong answers in meta["pairs"]'
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    print(json.dumps(write_world(given.out, given.entities, given.mentions, given.seed, given.wrong)))


if __name__ == "__main__":
    main()
