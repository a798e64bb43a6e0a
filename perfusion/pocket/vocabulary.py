"""The words of pocket's world: what it can draw, where, and in which colours.

Plain data. Every word below is one token of the embedded model's tokenizer; the emoji names the pictures
of a noun in the openly licensed sets that `sprites.py` draws from.
"""

NOUNS: dict[str, str] = {
    "cat": "🐈", "dog": "🐕", "rabbit": "🐇", "elephant": "🐘", "turtle": "🐢", "owl": "🦉",
    "penguin": "🐧", "fish": "🐟", "teddy bear": "🧸", "robot": "🤖", "car": "🚗", "bus": "🚌",
    "boat": "⛵", "house": "🏠", "tree": "🌳", "cactus": "🌵", "sunflower": "🌻", "mushroom": "🍄",
    "apple": "🍎", "cake": "🎂", "teapot": "🫖", "chair": "🪑", "hat": "🎩", "umbrella": "☂️",
}  # fmt: skip
"""Noun → the emoji that pictures it."""

KIN: dict[str, str] = {
    "kitten": "cat", "kitty": "cat", "tomcat": "cat", "tiger": "cat", "lion": "cat", "puppy": "dog", "pug": "dog",
    "wolf": "dog", "fox": "dog", "poodle": "dog", "bunny": "rabbit", "hare": "rabbit", "tortoise": "turtle",
    "bird": "owl", "parrot": "owl", "chicken": "penguin", "duck": "penguin", "shark": "fish", "goldfish": "fish",
    "teddy": "teddy bear", "bear": "teddy bear", "plush": "teddy bear", "toy": "teddy bear", "doll": "teddy bear",
    "android": "robot", "taxi": "car", "truck": "bus", "van": "bus", "tram": "bus", "train": "bus", "coach": "bus",
    "ship": "boat", "sailboat": "boat", "yacht": "boat", "building": "house", "cottage": "house", "palm": "tree",
    "plant": "cactus", "flower": "sunflower", "rose": "sunflower", "daisy": "sunflower", "toadstool": "mushroom",
    "fruit": "apple", "pear": "apple", "pie": "cake", "cupcake": "cake", "bread": "cake", "mug": "teapot",
    "cup": "teapot", "pot": "teapot", "kettle": "teapot", "vase": "teapot", "bottle": "teapot", "stool": "chair",
    "sofa": "chair", "armchair": "chair", "cap": "hat", "helmet": "hat", "parasol": "umbrella",
}  # fmt: skip
"""Everyday words that pocket does not know, with the noun that comes nearest in shape."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.12, 0.14), "green": (0.16, 0.66, 0.20), "blue": (0.13, 0.36, 0.90),
    "yellow": (0.98, 0.82, 0.12), "purple": (0.55, 0.22, 0.78), "pink": (0.98, 0.50, 0.72),
    "orange": (0.98, 0.55, 0.10), "black": (0.10, 0.10, 0.12), "white": (0.97, 0.97, 0.97),
    "brown": (0.50, 0.30, 0.15), "grey": (0.55, 0.55, 0.58),
}  # fmt: skip
"""Colour name → sRGB in [0, 1]; used for plain backgrounds and for recoloured objects."""

PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "on the beach", "at the beach"),
    "grass": ("on grass", "on the grass", "in a meadow"),
    "night": ("at night", "under the night sky"),
    "snow": ("in the snow", "on snow"),
    "table": ("on a wooden table", "on a table"),
    "room": ("in a room", "in a living room"),
    "underwater": ("underwater", "under the sea"),
    "desert": ("in the desert", "in a desert"),
    "sunset": ("at sunset",),
    "mountains": ("in the mountains", "in front of mountains"),
    "forest": ("in a forest", "in the forest"),
    "street": ("on a street", "in the city"),
    "brick": ("in front of a brick wall",),
}
"""Painted scene → the phrases that ask for it."""

GROUND: dict[str, tuple[float, float]] = {
    "beach": (0.68, 0.95), "grass": (0.68, 0.95), "night": (0.72, 0.95), "snow": (0.68, 0.95),
    "table": (0.68, 0.95), "room": (0.74, 0.95), "underwater": (0.55, 0.92), "desert": (0.68, 0.95),
    "sunset": (0.72, 0.95), "mountains": (0.74, 0.95), "forest": (0.72, 0.95), "street": (0.74, 0.95),
    "brick": (0.80, 0.95),
}  # fmt: skip
"""Painted scene → where an object may stand: the range of its base line, 0 the top of the picture, 1 the bottom."""

PLAIN_GROUND = (0.66, 0.95)
"""The same for plain colour backgrounds."""

PATTERNS = ("striped", "spotted", "two-tone")
"""Looks that captions name; many pictures carry one unnamed, so that the model's range is wider than its words."""

COUNTS = {1: "one", 2: "two", 3: "three"}

UNUSED = frozenset({
    "above", "angry", "back", "beside", "big", "body", "bright", "centre", "clean", "dark", "drawing", "eight", "eyes",
    "face", "facing", "flying", "happy", "head", "holding", "huge", "inside", "is", "it", "light", "little", "middle",
    "new", "nine", "old", "over", "painting", "rendering", "running", "sad", "seven", "shiny", "six", "sleeping",
    "sticker", "tall", "ten", "that", "this", "tiny", "wide", "zero",
})  # fmt: skip
"""Words that have a token of their own and were in no caption of the training: they mean nothing to the model."""


def plural(noun: str) -> str:
    """The plural of one of NOUNS.

    >>> plural("bus"), plural("fish"), plural("teddy bear")
    ('buses', 'fish', 'teddy bears')
    """
    if noun == "fish":
        return noun
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def article(words: str) -> str:
    """The words behind their indefinite article.

    >>> article("owl"), article("blue cat"), article("umbrella")
    ('an owl', 'a blue cat', 'an umbrella')
    """
    return ("an " if words[0] in "aeiou" else "a ") + words


def near_nouns(word: str) -> tuple[str, ...]:
    """The nouns that come nearest to a word that is none of them: of its kind, or else of its letters.

    >>> near_nouns("kitten"), near_nouns("boot")
    (('cat',), ('boat', 'robot'))
    """
    import difflib  # only where a word is none of them

    kin = dict.fromkeys(KIN[part] for part in word.lower().split() if part in KIN)
    return tuple(kin) or tuple(difflib.get_close_matches(word.lower(), NOUNS, n=3, cutoff=0.5))


def noun_fault(word: str) -> str:
    """What is wrong with a superclass for the embedded model, as a sentence; empty for one of NOUNS."""
    if word.lower() in NOUNS:
        return ""
    near = near_nouns(word)
    hint = f"did you mean {' or '.join(near)}? It" if near else "it"
    return f"The embedded model has never seen {word!r}; {hint} knows: {', '.join(NOUNS)}."


def place_phrases(place: str) -> tuple[str, ...]:
    """The phrases for a painted scene or for a colour that stands for a plain background."""
    return PLACES[place] if place in PLACES else (f"on a {place} background", f"on {place}")


def words() -> list[str]:
    """Every word of the world's captions and of the training templates, sorted."""
    text = [*NOUNS, *map(plural, NOUNS), *COLOURS, *PATTERNS, *COUNTS.values()]
    text += [phrase for place in [*PLACES, *COLOURS] for phrase in place_phrases(place)]
    text += [
        "a photo of an and the next to left right sitting standing picture my good close up small large big"
    ]
    text += [
        "cropped clean nice painting drawing rendering sticker shiny old new this that it is with above below"
    ]
    return sorted({word for phrase in text for word in phrase.replace("-", " ").split()})
