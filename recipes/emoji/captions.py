"""From drawings and emoji names to a manifest of pictures: name, captions, sampling weight.

Pure functions: nothing here reads a file. Held-out pictures, and drawings equal to one of them,
never reach the manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sources import Drawings, Names, normalize_hexcode

STYLES = {
    "noto": "noto",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "flat",
    "fluent-emoji-3d": "3d",
}
GROUPS = (
    "smileys",
    "people",
    "component",
    "animals",
    "food",
    "travel",
    "activities",
    "objects",
    "symbols",
    "flags",
)
GROUP_WEIGHT = {
    "smileys": 1.5,
    "people": 0.5,
    "component": 0.3,
    "animals": 2.0,
    "food": 2.0,
    "travel": 1.5,
    "activities": 1.5,
    "objects": 1.5,
    "symbols": 0.7,
    "flags": 0.4,
}
PROPER_GROUPS = ("symbols", "flags", "component")
NOUN_GROUPS = ("animals", "food", "travel", "activities", "objects")
TONE = r"(?:medium-light|medium-dark|light|medium|dark)"
MAX_TAG_USERS = 4
MAX_SYNONYMS = 5


@dataclass(frozen=True)
class Picture:
    """One training picture: where it is drawn, what it shows, how it is captioned."""

    set: str
    style: str
    key: str
    hexcode: str | None
    name: str
    concept: str
    group: str
    captions: list[tuple[str, float]]
    weight: float


@dataclass(frozen=True)
class Entry:
    """What is known of one emoji: its label, group and sub-group, and other words for it."""

    label: str
    group: str
    tags: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    kind: str = ""


def plain(text: str) -> str:
    """Text as captions spell it: lower case, straight quotes left out, single spaces."""
    text = text.lower().replace("’", "'")
    return " ".join(re.sub(r"[“”\"⊛]", "", text).split())


def spoken_name(label: str) -> str:
    """An emojibase label as a phrase: "flag: Germany" becomes "flag of germany"."""
    label = plain(label)
    if label.startswith("flag: "):
        return "flag of " + label.removeprefix("flag: ")
    if label.startswith("keycap: "):
        return label.replace("keycap: ", "keycap ")
    return label.replace(": ", ", ")


def name_from_key(key: str) -> str:
    """A phrase from an icon key: "technologist-medium-light" names a skin tone."""
    match = re.fullmatch(rf"(.+?)((?:-{TONE}(?:-skin-tone)?)+)", key)
    if match is None or match[1] in ("black", "white"):
        return key.replace("-", " ")
    tones = re.findall(rf"-({TONE})(?:-skin-tone)?(?=-|$)", match[2])
    return ", ".join([match[1].replace("-", " "), *(f"{tone} skin tone" for tone in tones)])


def concept_of(label: str) -> str:
    """What the variants of one emoji share: the label without skin tone, hair and gender."""
    label = plain(label)
    if not label.startswith(("flag: ", "keycap: ")):
        label = re.split(r"[:,]", label)[0]
    label = re.sub(r"\b(man|woman|men|women|people|boy|girl)\b", "person", label)
    return label.removeprefix("person ")


def _shortcode_words(names: Names, hexcode: str) -> list[str]:
    words = []
    for table in names.shortcodes:
        codes = table.get(hexcode, [])
        words += [codes] if isinstance(codes, str) else codes
    words = [word.replace("_", " ").replace("-", " ") for word in words]
    return [word for word in words if len(word) > 2 and not re.search(r"\d$|^flag ", word)]


def index_entries(names: Names) -> dict[str, Entry]:
    """Entries by normalized hexcode, skin-tone variants included.

    Tags that more than MAX_TAG_USERS emoji share describe, they do not name: only rarer ones
    become synonyms.
    """
    users = Counter(tag for emoji in names.emoji for tag in emoji.get("tags", []))
    entries = {}
    for emoji in names.emoji:
        group = GROUPS[emoji["group"]] if emoji.get("group") is not None else "component"
        tags = tuple(plain(tag) for tag in emoji.get("tags", []))
        rare = [plain(tag) for tag in emoji.get("tags", []) if users[tag] <= MAX_TAG_USERS]
        words = [] if group == "flags" else _shortcode_words(names, emoji["hexcode"])
        words += rare if group in NOUN_GROUPS else []
        name = spoken_name(emoji["label"])
        synonyms = tuple(dict.fromkeys(w for w in words if w != name and len(w) > 2))
        kind = names.subgroups.get(str(emoji.get("subgroup")), "")
        entries[normalize_hexcode(emoji["hexcode"])] = Entry(
            emoji["label"], group, tags, synonyms, kind
        )
        for skin in emoji.get("skins", []):
            entries[normalize_hexcode(skin["hexcode"])] = Entry(skin["label"], group, kind=kind)
    return entries


def with_article(name: str, group: str) -> str:
    """A noun phrase as one would say it: "a red apple"; no article for plurals and signs."""
    head, _, tail = name.partition(", ")
    phrase = f"{head} with {tail}" if re.fullmatch(rf"{TONE} skin tone", tail) else name
    plural = re.search(r"(?<![su])s$", head) or re.match(r"(men|women|people)\b", head)
    if group in PROPER_GROUPS or plural or re.search(r"\d", head):
        return phrase
    return f"{'an' if head[0] in 'aeiou' else 'a'} {phrase}"


def caption_variants(
    name: str, style: str, group: str, tags: Iterable[str] = (), synonyms: Iterable[str] = ()
) -> list[tuple[str, float]]:
    """Captions of one picture with the share in which training draws them; shares sum to 1."""
    phrase = with_article(name, group)
    share: dict[str, float] = {}

    def add(caption: str, weight: float) -> None:
        share[caption] = share.get(caption, 0.0) + weight

    add(f"{name}, {style} style", 0.32)
    add(f"{phrase}, {style} style", 0.14)
    add(f"an emoji of {phrase} in {style} style", 0.10)
    add(name, 0.07)
    add(phrase, 0.05)
    words = list(synonyms)[:MAX_SYNONYMS]
    for word in words:
        add(f"{word}, {style} style", 0.10 / len(words))
        add(word, 0.02 / len(words))
        add(with_article(word, group), 0.02 / len(words))
    told = [tag for tag in tags if tag not in name][:2]
    if told:
        add(", ".join([name, *told, f"{style} style"]), 0.08)
    total = sum(share.values())
    return [(caption, round(weight / total, 4)) for caption, weight in share.items()]


def kept_keys(drawings: Drawings, held_out: Iterable[str]) -> list[str]:
    """Keys that may be trained on: no held-out drawing, and each drawing once.

    Of equal drawings the first key in alphabetical order stays.
    """
    held_out = list(held_out)
    unknown = [key for key in held_out if key not in drawings.items]
    if unknown:
        raise ValueError(f"held-out keys that the set does not have: {', '.join(unknown)}")
    seen = {drawings.digest(key) for key in held_out}
    kept = []
    for key in sorted(drawings.items):
        digest = drawings.digest(key)
        if digest not in seen:
            seen.add(digest)
            kept.append(key)
    return kept


def describe(key: str, hexcodes: list[str], entries: dict[str, Entry]) -> tuple[Entry, str | None]:
    """What is known of a drawing, and under which of its code points; a name from its key at least."""
    for hexcode in hexcodes:
        if hexcode in entries:
            return entries[hexcode], hexcode
    hexcode = hexcodes[0] if hexcodes else None
    return Entry(name_from_key(key), "objects"), hexcode


def build_manifest(
    sets: dict[str, Drawings], names: Names, holdout: dict[str, list[str]]
) -> list[Picture]:
    """Every picture that training may see, in the order of set and key.

    sets     drawings by set name; the names are those of STYLES
    holdout  held-out keys by set name; a set it does not list is an error

    A concept's n variants in one style (skin tones, genders) each weigh 1/sqrt(n) of a single
    picture, so that they do not drown the concepts that have one picture. Weights average 1.
    """
    entries = index_entries(names)
    pictures = []
    for set_name, drawings in sets.items():
        if set_name not in holdout:
            raise ValueError(f"the holdout lists no set {set_name!r}: it has {sorted(holdout)}")
        keys = kept_keys(drawings, holdout[set_name])
        known = {key: describe(key, drawings.hexcodes.get(key, []), entries) for key in keys}
        variants = Counter(concept_of(entry.label) for entry, _ in known.values())
        for key, (entry, hexcode) in known.items():
            name, concept, style = (
                spoken_name(entry.label),
                concept_of(entry.label),
                STYLES[set_name],
            )
            captions = caption_variants(name, style, entry.group, entry.tags, entry.synonyms)
            weight = GROUP_WEIGHT[entry.group] / variants[concept] ** 0.5
            pictures.append(
                Picture(set_name, style, key, hexcode, name, concept, entry.group, captions, weight)
            )
    return normalize_weights(pictures)


def normalize_weights(pictures: list[Picture]) -> list[Picture]:
    """The same pictures with weights that average 1."""
    if not pictures:
        return []
    mean = sum(p.weight for p in pictures) / len(pictures)
    return [Picture(**{**vars(p), "weight": round(p.weight / mean, 5)}) for p in pictures]
