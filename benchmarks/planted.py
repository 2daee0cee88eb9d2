"""Made-up rows with known duplicates, personal data, test items and secrets in them, to measure detectors on.

Everything comes from one seed. Check digits are computed here in their own way, so that a detector is not measured
against itself. Texts are sentences from word lists: two of them share next to nothing by chance, as real rows of one
topic would, so precision here is that against planted look-alikes, not against all of the web.
"""

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

NOUNS = """apple bridge candle desert engine forest garden harbor island jacket kettle lantern market notebook ocean
    pencil quarry river saddle tunnel umbrella valley window yard anchor basket camera dragon elevator feather guitar
    hammer insect journal kitchen ladder mirror needle orchard planet quilt rocket statue temple uniform village wagon
    clock spider teacher doctor farmer painter sailor tailor baker judge singer writer captain soldier pupil neighbor
    recipe theorem contract budget protein galaxy volcano comet orbit circuit sensor packet compiler database server
    invoice ledger voter senate treaty museum sculpture symphony novel poem chapter ticket airport luggage passport
    virus enzyme neuron muscle tendon fracture vaccine tablet bandage glacier drought monsoon harvest orchid falcon
    magpie salmon beetle badger walrus pigeon turtle donkey panther lizard mussel""".split()  # noqa: SIM905
VERBS = """carries builds follows paints repairs measures compares hides borrows describes protects gathers divides
    observes records designs replaces inspects praises questions translates remembers forgets polishes delivers
    collects arranges predicts explains imagines shortens improves ignores chases admires answers visits trades
    weighs sketches guards feeds teaches counts tests tunes sorts merges prints folds locks opens""".split()  # noqa: SIM905
ADJECTIVES = """old bright narrow quiet heavy gentle distant broken curious golden hollow modern northern painted
    rapid silver tiny useful violet wooden young brave clever damp early famous green honest icy jolly kind loose
    muddy noisy plain round salty tall urgent vast warm cheap dusty exact fragile humble idle""".split()  # noqa: SIM905
PLACES = """the coast|the mountains|a small town|the old school|the factory|the library|the station|a far country|the
    laboratory|the courthouse|the theatre|the village square|the hospital|the shipyard|the observatory|the archive|the
    vineyard|the tower|the basement|the embassy|the greenhouse""".replace("\n    ", " ").split("|")
TIMES = ["in the morning", "after the storm", "during the winter", "once a year", "before dawn", "at the weekend",
         "since the spring", "without delay", "for many years", "as a rule", "by chance", "on Tuesdays"]  # fmt: skip
# Words that mean much the same: an edit with them keeps what a text says.
SYNONYMS = {
    "old": "ancient", "bright": "shiny", "quiet": "silent", "tiny": "very small", "rapid": "fast", "young": "youthful",
    "clever": "smart", "brave": "courageous", "famous": "well-known", "vast": "huge", "cheap": "inexpensive",
    "carries": "transports", "builds": "constructs", "repairs": "mends", "compares": "contrasts", "gathers": "collects",
    "replaces": "swaps", "inspects": "examines", "remembers": "recalls", "improves": "enhances", "delivers": "brings",
    "forest": "wood", "doctor": "physician", "teacher": "instructor", "novel": "book", "village": "hamlet",
}  # fmt: skip
OPENERS = [
    "Explain why",
    "Describe how",
    "Write a short text about how",
    "Tell me whether",
    "Give three reasons why",
]

# Share of the rows; the rest is plain.
SHARES = {
    "exact": 0.04, "near": 0.05, "paraphrase": 0.04, "personal": 0.10, "decoy": 0.08, "contaminated": 0.04,
    "overlap": 0.03, "secret": 0.03,
}  # fmt: skip


@dataclass(slots=True)
class Row:
    """A text and what was planted in it. planted: (kind, exact text); of: the row that it repeats."""

    text: str
    kind: str = "plain"
    planted: list[tuple[str, str]] = field(default_factory=list)
    of: int | None = None


def sentence(rng: random.Random) -> str:
    pick = rng.choice
    middle = f"the {pick(ADJECTIVES)} {pick(NOUNS)} {pick(VERBS)} the {pick(ADJECTIVES)} {pick(NOUNS)}"
    ends = [
        f"near {pick(PLACES)}",
        pick(TIMES),
        f"with a {pick(NOUNS)}",
        f"and {pick(VERBS)} a {pick(NOUNS)}",
    ]
    end = pick(ends)
    return f"{middle} {end}"


def text(rng: random.Random, sentences: int) -> str:
    """An instruction, and an answer of some sentences."""
    said = [sentence(rng) for _ in range(sentences)]
    answer = " ".join(f"{each[0].upper()}{each[1:]}." for each in said[1:])
    return f"{rng.choice(OPENERS)} {said[0]}.\n{answer}"


def plain_texts(count: int, seed: int) -> Iterator[str]:
    """Rows for timing: one in twenty repeats an earlier one with a word or two changed, one in fifty exactly."""
    rng = random.Random(seed)
    recent: list[str] = []
    for _ in range(count):
        draw = rng.random()
        if recent and draw < 0.07:
            found = rng.choice(recent)
            yield found if draw < 0.02 else replaced(found, rng, rng.randint(1, 2))
            continue
        made = text(rng, rng.randint(3, 9))
        recent = [*recent[-200:], made]
        yield made


def replaced(original: str, rng: random.Random, count: int) -> str:
    """`count` words exchanged for others."""
    words = original.split(" ")
    for place in rng.sample(range(len(words)), count):
        words[place] = rng.choice(NOUNS)
    return " ".join(words)


def paraphrased(original: str, rng: random.Random) -> str:
    """The same said otherwise: synonyms, sentences in another order, another opening."""
    head, _, answer = original.partition("\n")
    words = [SYNONYMS.get(word, word) for word in answer.split(" ")]
    parts = [part.strip() for part in " ".join(words).split(".") if part.strip()]
    rng.shuffle(parts)
    body = " ".join(f"{part}." for part in parts)
    return f"Please tell me: {head[0].lower()}{head[1:]}\nWell, {body}"


def same_to_a_reader(original: str, rng: random.Random) -> str:
    """Another form of the same words: case, blanks, quotation marks."""
    form = rng.choice(
        [str.upper, str.lower, lambda t: t.replace(" ", "  "), lambda t: t.replace(".", "!"), str]
    )
    return form(original)


# ------------------------------------------------------------------------------------------------------ personal data


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def with_luhn(body: str) -> str:
    """`body` with the check digit that makes the sum of Luhn's scheme a multiple of ten."""
    total = sum(
        2 * int(d) - 9 * (int(d) > 4) if place % 2 == 0 else int(d) for place, d in enumerate(reversed(body))
    )
    return f"{body}{-total % 10}"


def card(rng: random.Random) -> str:
    prefix = rng.choice(["4", "51", "53", "55", "2300"])
    number = with_luhn(prefix + digits(rng, 15 - len(prefix)))
    return number if rng.random() < 0.4 else rng.choice(" -").join(number[i : i + 4] for i in range(0, 16, 4))


def iban(rng: random.Random) -> str:
    country, length = rng.choice(
        [("DE", 18), ("FR", 23), ("ES", 20), ("NL", 14), ("BE", 12), ("PL", 24), ("AT", 16)]
    )
    bank = "ABNA" if country == "NL" else ""
    body = bank + digits(rng, length - len(bank))
    number = "".join(str(int(sign, 36)) for sign in f"{body}{country}00")
    whole = f"{country}{98 - int(number) % 97:02d}{body}"
    return whole if rng.random() < 0.5 else " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))


def resident(rng: random.Random) -> str:
    body = f"{rng.randint(50, 99)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{rng.choice('12')}{digits(rng, 5)}"
    total = sum(int(d) * w for d, w in zip(body, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True))
    return f"{body[:6]}-{body[6:]}{(11 - total % 11) % 10}"


def phone(rng: random.Random) -> str:
    n = lambda count: digits(rng, count)  # noqa: E731
    area, office = f"{rng.randint(201, 989)}", f"{rng.randint(200, 999)}"
    return rng.choice(
        [
            f"({area}) {office}-{n(4)}",
            f"{area}-{office}-{n(4)}",
            f"+1 {area} {office} {n(4)}",
            f"+44 20 7{n(3)} {n(4)}",
            f"+82 10-{n(4)}-{n(4)}",
            f"010-{n(4)}-{n(4)}",
            f"02-{office}-{n(4)}",
            f"+49 30 {n(7)}",
            f"030/{n(7)}",
            f"+33 6 {n(2)} {n(2)} {n(2)} {n(2)}",
            f"06 {n(2)} {n(2)} {n(2)} {n(2)}",
            f"03-{office}1-{n(4)}",
            f"+91 9{n(4)} {n(5)}",
        ]
    )


def public_ip(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return f"2a0{rng.randint(1, 9)}:" + ":".join(f"{rng.randint(4096, 65535):x}" for _ in range(7))
    first = rng.choice([8, 31, 46, 81, 93, 151, 185, 203])
    return f"{first}.{rng.randint(1, 99)}.{rng.randint(120, 250)}.{rng.randint(1, 254)}"


def email(rng: random.Random) -> str:
    one, other, host, more = rng.choices(NOUNS, k=4)
    name = f"{one}{rng.choice(['.', '_', '', '+', '-'])}{other}{rng.choice(['', digits(rng, 2)])}"
    return f"{name}@{host}{rng.choice(['', f'-{more}'])}.{rng.choice(['com', 'org', 'co.kr', 'de'])}"


def ssn(rng: random.Random) -> str:
    area = rng.choice([rng.randint(1, 665), rng.randint(667, 899)])
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


PERSONAL: dict[str, Callable[[random.Random], str]] = {
    "email": email, "phone": phone, "ip": public_ip, "card": card, "iban": iban, "us_ssn": ssn,
    "korean_resident_number": resident,
}  # fmt: skip


def decoy(rng: random.Random) -> str:
    """What looks like personal data and is none."""
    wrong = card(rng)
    wrong = f"{wrong[:-1]}{(int(wrong[-1]) + rng.randint(1, 9)) % 10}"
    n = lambda count: digits(rng, count)  # noqa: E731
    return rng.choice(
        [
            wrong,
            f"order {n(10)}",
            f"192.168.{rng.randint(0, 255)}.{rng.randint(0, 255)}",
            f"version {n(1)}.{n(1)}.{n(2)}.{n(1)}",
            f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            f"{n(3)}.{n(3)}",
            f"ISBN 978-{n(1)}-{n(3)}-{n(5)}-{n(1)}",
            f"{rng.randint(1, 12):02d}/{rng.randint(1, 28):02d}/{rng.randint(1990, 2030)}",
            f"pi is 3.14159{n(8)}",
            f"room {n(3)}-{n(2)}",
            f"{rng.randint(1, 9)},{n(3)},{n(3)} people",
            f"at {rng.randint(0, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)}",
            f"@{rng.choice(NOUNS)}",
            f"std::{rng.choice(NOUNS)}::{rng.choice(NOUNS)}",
            f"2^{n(2)} = {n(12)}",
            f"serial {n(4)}-{n(4)}-{n(4)}",
            f"000-{n(2)}-{n(4)}",
            f"commit {''.join(rng.choices('0123456789abcdef', k=40))}",
        ]
    )


def secret(rng: random.Random) -> str:
    letters = string.ascii_letters + string.digits
    some = lambda count: "".join(rng.choices(letters, k=count))  # noqa: E731
    return rng.choice(
        [
            f"sk-{some(48)}",
            f"hf_{some(34)}",
            f"ghp_{some(36)}",
            f"AKIA{some(16).upper()}",
            f"AIza{some(35)}",
            f"xoxb-{digits(rng, 12)}-{some(24)}",
            f"glpat-{some(20)}",
            f'api_key = "{some(32)}"',
        ]
    )


# --------------------------------------------------------------------------------------------------------- the rows


def test_items(count: int, seed: int) -> list[str]:
    """A test set: prompts of 8 to some 40 words."""
    rng = random.Random(f"tests {seed}")
    return [
        f"{rng.choice(OPENERS)} {', and '.join(sentence(rng) for _ in range(rng.randint(1, 3)))}?"
        for _ in range(count)
    ]


def rows(count: int, seed: int, tests: list[str]) -> list[Row]:
    """`count` rows in a shuffled order; a repeat comes after the row that it repeats."""
    rng = random.Random(f"rows {seed}")
    made: list[Row] = []
    plain: list[int] = []
    for number in range(count):
        kind = _kind(rng) if len(plain) >= 100 else "plain"
        row = _row(kind, rng, made, plain, tests)
        if kind == "plain":
            plain.append(number)
        made.append(row)
    return made


def _kind(rng: random.Random) -> str:
    draw = rng.random()
    for kind, share in SHARES.items():
        if draw < share:
            return kind
        draw -= share
    return "plain"


def _row(kind: str, rng: random.Random, made: list[Row], plain: list[int], tests: list[str]) -> Row:
    if kind in ("exact", "near", "paraphrase"):
        of = plain.pop(rng.randrange(len(plain)))  # each is repeated once, so that pairs are known
        original = made[of].text
        if kind == "near":
            return Row(
                replaced(original, rng, rng.randint(1, max(1, len(original.split()) // 30))), kind, of=of
            )
        return Row((same_to_a_reader if kind == "exact" else paraphrased)(original, rng), kind, of=of)
    base = text(rng, rng.randint(3, 9))
    if kind == "plain":
        return Row(base)
    pieces: dict[str, Callable[[], tuple[str, str]]] = {
        "personal": lambda: _personal(rng),
        "decoy": lambda: ("decoy", decoy(rng)),
        "secret": lambda: ("secret", secret(rng)),
        "contaminated": lambda: ("contaminated", _disguised(rng.choice(tests), rng)),
        "overlap": lambda: (
            "overlap",
            " ".join(rng.choice([t for t in tests if len(t.split()) > 13]).split()[:7]),
        ),
    }
    label, piece = pieces[kind]()
    head, _, tail = base.partition(". ")
    return Row(
        f"{head}. {rng.choice(['See', 'Note:', 'It says', 'Write to'])} {piece}, then. {tail}",
        kind,
        [(label, piece)],
    )


def _personal(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(PERSONAL))
    return kind, PERSONAL[kind](rng)


def _disguised(item: str, rng: random.Random) -> str:
    """A test item with another case, other punctuation, or a piece of it of 16 words and more."""
    words = item.split()
    if len(words) > 20 and rng.random() < 0.5:
        start = rng.randint(0, len(words) - 16)
        words = words[start : start + 16]
    return rng.choice([str.upper, str.lower, lambda t: t.replace(",", " -"), str])(" ".join(words))
