"""Phrasings: the built-in templates, in the manner of FLAN: each task put in several ways, fields known by their names.

Source of the manner: Wei et al., FLAN, arXiv:2109.01652, section 2.1; the wording is our own, but for that of alpaca,
which is that of Taori et al., "Stanford Alpaca", 2023.
"""

from typing import Literal

TemplateName = Literal["alpaca", "summarise", "translate", "qa", "nli", "sentiment", "entities"]

SEPARATOR = "|||"  # between a prompt and its completion

_BELOW = "Below is an instruction that describes a task"
_RESPOND = "Write a response that appropriately completes the request."
_ALPACA = f"""{{% if input %}}
{_BELOW}, paired with an input that provides further context. {_RESPOND}

### Instruction:
{{{{ instruction }}}}

### Input:
{{{{ input }}}}

### Response:
{{% else %}}
{_BELOW}. {_RESPOND}

### Instruction:
{{{{ instruction }}}}

### Response:
{{% endif %}}
|||{{{{ output }}}}"""

_TO = "{% if target_language %} into {{ target_language }}{% endif %}"
_FROM = "{% if source_language %} from {{ source_language }}{% endif %}"
_SOURCE, _TARGET = "{{ source_language or 'Text' }}", "{{ target_language or 'Translation' }}"
_CONTEXT = "{% if context %}{{ context }}\n\n{% endif %}"

TEMPLATES: dict[TemplateName, tuple[str, ...]] = {
    "alpaca": (_ALPACA,),
    "summarise": (
        "{{ document }}\n\nSummary: ||| {{ summary }}",
        "Summarise the following text.\n\n{{ document }}\n\nSummary: ||| {{ summary }}",
        "{{ document }}\n\nTL;DR: ||| {{ summary }}",
        "Text: {{ document }}\n\nIn short: ||| {{ summary }}",
        "Read this and say briefly what it is about.\n\n{{ document }}\n\nAnswer: ||| {{ summary }}",
        "Here is a text:\n\n{{ document }}\n\nWrite a short summary of the text above.\n|||{{ summary }}",
    ),
    "translate": (
        f"Translate{_FROM}{_TO}: {{{{ source }}}}\nTranslation: ||| {{{{ target }}}}",
        f"{_SOURCE}: {{{{ source }}}}\n{_TARGET}: ||| {{{{ target }}}}",
        f"{{{{ source }}}}\n\nTranslate the text above{_TO}.\n|||{{{{ target }}}}",
        f'How is "{{{{ source }}}}" put{_TO}?\nAnswer: ||| {{{{ target }}}}',
        f"Put this{_TO}.\n\n{{{{ source }}}}\n\nTranslation: ||| {{{{ target }}}}",
    ),
    "qa": (
        _CONTEXT + "Question: {{ question }}\nAnswer: ||| {{ answer }}",
        _CONTEXT + "Q: {{ question }}\nA: ||| {{ answer }}",
        "{% if context %}Read the text and answer the question.\n\n" + _CONTEXT + "{% else %}Answer the question.\n\n"
        "{% endif %}{{ question }}\nAnswer: ||| {{ answer }}",
        "{{ question }}\n\n" + _CONTEXT + "Answer: ||| {{ answer }}",
        "{% if context %}{{ context }}\n\nAccording to the text above: {% endif %}{{ question }}\n|||{{ answer }}",
    ),
    "nli": (
        "Premise: {{ premise }}\nHypothesis: {{ hypothesis }}\n"
        "Does the premise entail the hypothesis? Yes, no or maybe? ||| {{ label }}",
        "{{ premise }}\n\nDoes it follow that {{ hypothesis }} Yes, no or maybe?\nAnswer: ||| {{ label }}",
        'Suppose that this is so: {{ premise }}\nIs "{{ hypothesis }}" then true? (yes / no / maybe)\n'
        "Answer: ||| {{ label }}",
        "Sentence 1: {{ premise }}\nSentence 2: {{ hypothesis }}\n"
        "If sentence 1 is true, is sentence 2 (yes, no, or maybe)? ||| {{ label }}",
        "Read the text and say whether the claim is true of it: yes, no, or maybe.\n\nText: {{ premise }}\n"
        "Claim: {{ hypothesis }}\nAnswer: ||| {{ label }}",
    ),
    "sentiment": (
        "{{ text }}\nSentiment: ||| {{ label }}",
        "Review: {{ text }}\nIs this review positive or negative?\nAnswer: ||| {{ label }}",
        "What is the sentiment of the following text?\n\n{{ text }}\n\nSentiment: ||| {{ label }}",
        'How does someone feel who says "{{ text }}"?\nAnswer: ||| {{ label }}',
        "{{ text }}\n\nIs the tone of the text above negative or positive?\n|||{{ label }}",
    ),
    "entities": (
        "{{ text }}\nNamed entities: ||| {{ entities }}",
        "List the named entities in this text, each with its kind.\n\n{{ text }}\n\nEntities: ||| {{ entities }}",
        "Text: {{ text }}\nWhich people, places and other things are named here?\nAnswer: ||| {{ entities }}",
        "Find the names in the text and say what they are names of.\n\n{{ text }}\n\nNames: ||| {{ entities }}",
    ),
}  # fmt: skip

# Other names of the fields, the likeliest first; the first that a record has is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "document": ("text", "article", "dialogue", "passage", "content", "body", "doc", "prompt"),
    "summary": ("highlights", "abstract", "tldr", "completion"),
    "context": ("passage", "paragraph"),
    "question": ("query",),
    "answer": ("answers", "response"),
    "premise": ("sentence1", "text"),
    "hypothesis": ("sentence2", "text_pair", "claim"),
    "text": ("sentence", "review", "content", "tokens"),
    "label": ("sentiment", "labels"),
    "instruction": ("question", "query"),
    "input": ("context",),
    "output": ("response", "answer", "completion", "target"),
}
OPTIONAL = ("input", "context", "source_language", "target_language")  # "" where a record has none

# What the numbers of labels stand for in the data sets of the task: SST and IMDB; SNLI and MNLI.
LABEL_WORDS: dict[str, dict[str, str]] = {
    "sentiment": {"0": "negative", "1": "positive", "neg": "negative", "pos": "positive"},
    "nli": {
        "0": "yes", "1": "maybe", "2": "no",
        "entailment": "yes", "neutral": "maybe", "contradiction": "no", "not_entailment": "no",
    },
}  # fmt: skip

LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "ga": "Irish", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian",
    "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian",
    "lv": "Latvian", "mt": "Maltese", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish",
    "sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
