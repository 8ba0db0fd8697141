"""Language detection for IF-Eval: by `langdetect`, or by script and common words."""

import re
import unicodedata
from collections import Counter

# {first word of a letter's Unicode name: ISO 639-1 codes of languages in this script}
_SCRIPTS = {
    "ARABIC": ("ar", "fa", "ur"), "BENGALI": ("bn",), "CYRILLIC": ("ru", "bg", "uk", "mk"),
    "DEVANAGARI": ("hi", "mr", "ne"), "GUJARATI": ("gu",), "GURMUKHI": ("pa",), "KANNADA": ("kn",), "HANGUL": ("ko",),
    "TAMIL": ("ta",), "TELUGU": ("te",), "THAI": ("th",), "GREEK": ("el",), "HEBREW": ("he",), "MALAYALAM": ("ml",),
    "HIRAGANA": ("ja",), "KATAKANA": ("ja",), "CJK": ("zh", "zh-cn", "zh-tw"),
}  # fmt: skip
# Frequent words of languages in Latin script.
_WORDS = {
    "en": "the of and to in is that it for with as are this you not have be on was by an or from at",
    "de": "der die und das ist nicht mit ein eine zu den von sich auf für dem im auch es wir werden",
    "fr": "le la les et des est une un du en que pour dans qui pas sur au avec ce sont nous vous",
    "es": "el la los las de que y en un una es por con para no del se su al como más",
    "pt": "o os as de que e em um uma é por com para não do da se mais como ao dos",
    "it": "il lo gli di che e un una è per con non del della si sono come più anche nel alla",
    "vi": "và của là có không được cho một các người trong những này với để",
    "fi": "ja on ei se että oli hän mutta myös ovat kun niin joka tämä",
    "sw": "ya na wa kwa ni katika za la kuwa hii cha yake kama watu",
}
_WORDS = {code: frozenset(words.split()) for code, words in _WORDS.items()}


def language_is(text: str, language: str) -> bool:
    """Whether `text` is in `language` (ISO 639-1), by the package `langdetect` or else by script and common words.

    A text without letters passes, as in the published checker; so does Latin script when the language has no word list.
    """
    try:
        import langdetect
    except ImportError:
        return _by_rule(text, language)
    langdetect.DetectorFactory.seed = 0  # otherwise not deterministic
    try:
        return langdetect.detect(text) == language
    except langdetect.LangDetectException:
        return True


def _by_rule(text: str, code: str) -> bool:
    scripts = Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in filter(str.isalpha, text))
    if not scripts:
        return True
    if max(scripts["HIRAGANA"], scripts["KATAKANA"]) * 20 > scripts.total():
        return code == "ja"  # there may be more kanji than kana
    main = scripts.most_common(1)[0][0]
    if main != "LATIN":
        return code in _SCRIPTS.get(main, ())
    if code not in _WORDS:
        return all(code not in codes for codes in _SCRIPTS.values())
    words = re.findall(r"\w+", text.lower())
    counts = {name: sum(word in common for word in words) for name, common in _WORDS.items()}
    return counts[code] == max(counts.values())
