"""Colours of figures on a light and on a dark page."""

LIGHT, DARK = "#ffffff", "#16181d"  # the page's own, as in page.css
CONTRAST = 4.5  # of two colours that can be told apart well, as in the accessibility guidelines of the W3C
STEPS = 20


def css_class(colour: str) -> str:
    """The class that sets ``--c``, the colour of what is drawn."""
    return f"c-{colour.removeprefix('#').lower()}"


def rule(colour: str) -> str:
    """Its CSS: as it is on a light page, mixed with white on a dark one until it can be seen."""
    return f".{css_class(colour)}{{--c:light-dark({colour},{on_dark(colour)})}}"


def on_dark(colour: str) -> str:
    """The colour with as little white as gives it ``CONTRAST`` on the dark page."""
    mixed = (_mixed(colour, step / STEPS) for step in range(STEPS))
    return next((one for one in mixed if contrast(one, DARK) >= CONTRAST), LIGHT)


def contrast(one: str, other: str) -> float:
    """From 1, the same, to 21, black on white."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _parts(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _mixed(colour: str, white: float) -> str:
    return "#" + "".join(f"{round(255 * (part + white * (1 - part))):02x}" for part in _parts(colour))


def _parts(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
