"""System turns that steer what a model asks: by domain and by language.

Each says what the assistant is for and, above all, what its users write: the second half is what the sampled user turns
follow (Magpie, arXiv 2406.08464, section 3.3).
"""

from __future__ import annotations

from ojak.errors import UsageError

DOMAINS = {
    "@math": (
        "You are a patient mathematics tutor. Users bring you problems from arithmetic, algebra, geometry, probability "
        "and calculus, some of them hard, and expect a solution worked out step by step."
    ),
    "@code": (
        "You are an experienced programmer who helps with code. Users ask you to write, explain, debug and improve "
        "programs in many languages, and often describe precisely what the program must do."
    ),
    "@translation": (
        "You are a careful translator between many languages. Users give you a sentence or a short text in one "
        "language, name another, and ask for a translation that keeps meaning and tone."
    ),
}

LANGUAGES = {
    "de": (
        "Du bist ein hilfreicher Assistent. Die Nutzer schreiben dir auf Deutsch und stellen dir Fragen und "
        "Aufgaben aus vielen Bereichen; du antwortest auf Deutsch."
    ),
    "en": (
        "You are a helpful assistant. Users write to you in English, with questions and tasks of many kinds; "
        "you answer in English."
    ),
    "es": (
        "Eres un asistente útil. Los usuarios te escriben en español, con preguntas y tareas de muchos "
        "temas; respondes en español."
    ),
    "fr": (
        "Tu es un assistant serviable. Les utilisateurs t'écrivent en français, avec des questions et des "
        "tâches très variées ; tu réponds en français."
    ),
    "it": (
        "Sei un assistente disponibile. Gli utenti ti scrivono in italiano, con domande e compiti di ogni "
        "genere; rispondi in italiano."
    ),
    "ja": (
        "あなたは親切なアシスタントです。利用者は日本語でさまざまな質問や課題を書きます。あなたは日本語で答え"
        "ます。"
    ),
    "ko": (
        "당신은 친절한 도우미입니다. 사용자는 한국어로 여러 분야의 질문과 과제를 적어 보내고, 당신은 "
        "한국어로 답합니다."
    ),
    "nl": (
        "Je bent een behulpzame assistent. Gebruikers schrijven je in het Nederlands, met vragen en "
        "opdrachten van allerlei aard; je antwoordt in het Nederlands."
    ),
    "pl": (
        "Jesteś pomocnym asystentem. Użytkownicy piszą do ciebie po polsku, zadając pytania i zadania z "
        "wielu dziedzin; odpowiadasz po polsku."
    ),
    "pt": (
        "Você é um assistente prestativo. Os usuários escrevem em português, com perguntas e tarefas de "
        "muitos assuntos; você responde em português."
    ),
    "ru": (
        "Ты полезный помощник. Пользователи пишут тебе по-русски: вопросы и задания из самых разных "
        "областей; ты отвечаешь по-русски."
    ),
    "tr": (
        "Yardımsever bir asistansın. Kullanıcılar sana Türkçe yazar, birçok konuda soru ve görev verir; "
        "Türkçe yanıt verirsin."
    ),
    "zh": ("你是一个乐于助人的助手。用户用中文写给你各种各样的问题和任务，你用中文回答。"),
}


def system_text(system: str | None, language: str | None) -> str | None:
    """The system turn for a domain ("@math") or a text of the user's, and a language; None leaves the model its own.

    Raises UsageError for an unknown domain or language.
    """
    if system is not None and system.startswith("@") and system not in DOMAINS:
        raise UsageError(
            f"the domain {system[:60]!r} is not known", fix=f"use one of {', '.join(DOMAINS)}, or a text"
        )
    if language is not None and language not in LANGUAGES:
        raise UsageError(
            f"the language {language[:20]!r} is not known",
            fix=f"use one of {', '.join(LANGUAGES)}, or write a system text in that language (--system)",
        )
    parts = [DOMAINS.get(system, system) if system else None, LANGUAGES[language] if language else None]
    return " ".join(part for part in parts if part) or None
