"""What the source texts are called; a study file names them by their files."""

from __future__ import annotations

# file, without its ending -> a title from its own heading, or from what it is about where it has none
TITLES: dict[str, str] = {
    "000_38d31ce5589bc0f3": "Role and Importance",
    "001_f2447d58742a0a01": "Interview Questions",
    "002_1bb06b3caf1ae8ff": "A Must-Have Technique",
    "003_b90cbfe2d783082f": "Meaning for Businesses",
    "004_8bfcc196da360525": "Study Guide",
}


def title_of(text: str) -> str:
    """The title of a source text; a text of a user's own study is called what the study calls it."""
    return TITLES.get(text, text)
