"""What a command of localmix wrote, and what the page says of every kind of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix.reports.reproduction.page import Block, Paragraph, Picture

Content = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a folder or file holds: its kind, its content, and the folder that its pictures lie in."""

    path: Path
    kind: str
    content: Content
    folder: Path


def origin(found: Found) -> Paragraph:
    """How it was made and on what."""
    content = found.content
    environment = content.get("environment", content)
    hardware, versions = environment["hardware"], environment["versions"]
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] != 1 else ''} of {hardware['cpu']}"
    commit = content.get("commit")
    revision = f", commit `{commit[:12]}`{' with changes' if commit.endswith('+') else ''}" if commit else ""
    return Paragraph(f"`{content['command']}`{revision}; {hardware['gpu'] or threads}, torch {versions['torch']}.")


def picture(found: Found, name: str, caption: str) -> list[Block]:
    """A PNG beside the results, if there is one."""
    file = found.folder / name
    return [Picture(file, caption)] if file.is_file() else []
