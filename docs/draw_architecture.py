"""Draw docs/pictures/architecture.svg from the imports: the rooms of src/hasten, and who imports whom.

A line that other lines imply (a imports b, b imports c, a imports c) is left out.

python docs/draw_architecture.py            # write the picture
python docs/draw_architecture.py --check    # fail if it is not current
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "hasten"
PICTURE = ROOT / "docs" / "pictures" / "architecture.svg"
WIDTH, ROW, BOX, GAP = 960, 92, 34, 14
Box = tuple[float, float, float]
# Readable on white and on black.
INK, LINE, HOT = "#7a8794", "#8fa3b3", "#26a69a"


def rooms() -> dict[str, set[str]]:
    """Every room (a package, or a module beside them) with the rooms that its files import."""
    found: dict[str, set[str]] = {}
    names = {path.stem for path in SOURCE.glob("*.py")} | {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        if room.startswith("__"):
            continue
        found.setdefault(room, set())
        found[room] |= (_imported(path) & names) - {room}
    return found


def layers(imports: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by height: what imports nothing is at the bottom, last."""
    height: dict[str, int] = {}

    def of(room: str, path: tuple[str, ...]) -> int:
        if room not in height:
            below = [of(other, (*path, room)) for other in sorted(imports[room]) if other not in path]
            height[room] = 1 + max(below, default=-1)
        return height[room]

    for room in sorted(imports):
        of(room, ())
    top = max(height.values())
    return [sorted(room for room, at in height.items() if at == level) for level in range(top, -1, -1)]


def picture() -> str:
    """The drawing as SVG; hovering a room shows what it imports."""
    imports = rooms()
    rows = layers(imports)
    place = _places(rows)
    height = {room: -level for level, row in enumerate(rows) for room in row}
    below = {room: {x for x in others if height[x] < height[room]} for room, others in imports.items()}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows) + 30}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<text x="8" y="16" fill="{INK}">A line leads from a room down to what it imports; dashed: up. '
        "What follows from other lines is left out.</text>",
    ]
    for room, others in sorted(imports.items()):
        implied = _implied(below[room], below)
        lines += [_line(place[room], place[other], height[other] < height[room]) for other in sorted(others - implied)]
    for room, (x, y, width) in sorted(place.items()):
        is_package = (SOURCE / room).is_dir()
        title = ", ".join(sorted(imports[room])) or "nothing"
        lines.append(
            f'<g><title>{room} imports {title}</title><rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" '
            f'height="{BOX}" rx="6" fill="{HOT}" fill-opacity="{0.28 if is_package else 0.1}" stroke="{HOT}"/>'
            f'<text x="{x + width / 2:.0f}" y="{y + BOX / 2 + 5:.0f}" text-anchor="middle" fill="{INK}" '
            f'font-weight="{600 if is_package else 400}">{room}{"/" if is_package else ""}</text></g>'
        )
    return "\n".join([*lines, "</svg>\n"])


def _imported(path: Path) -> set[str]:
    """First part below `hasten` of every module that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hasten":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hasten."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hasten.")}
    return found


def _line(start: Box, end: Box, is_down: bool) -> str:
    from_y, to_y = (start[1] + BOX, end[1]) if is_down else (start[1], end[1] + BOX)
    from_x, to_x, middle = start[0] + start[2] / 2, end[0] + end[2] / 2, (from_y + to_y) / 2
    dashes = "" if is_down else ' stroke-dasharray="4 3"'
    return (
        f'<path d="M{from_x:.0f} {from_y:.0f} C{from_x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} '
        f'{to_x:.0f} {to_y:.0f}" fill="none" stroke="{LINE}" stroke-opacity="0.7"{dashes}/>'
    )


def _implied(others: set[str], imports: dict[str, set[str]]) -> set[str]:
    """Those of `others` that one of the rest imports, directly or through more rooms."""
    seen: set[str] = set()
    waiting = [below for other in others for below in imports[other]]
    while waiting:
        if (room := waiting.pop()) not in seen:
            seen.add(room)
            waiting += imports[room]
    return seen


def _places(rows: list[list[str]]) -> dict[str, Box]:
    """x, y and width of every room's box, each row centred."""
    place = {}
    for index, row in enumerate(rows):
        widths = [9.0 * len(room) + 30 for room in row]
        x = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
        for room, width in zip(row, widths, strict=True):
            place[room] = (x, 30.0 + index * ROW, width)
            x += width + GAP
    return place


def main() -> None:
    """Write the picture, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PICTURE.write_text(picture())
    elif not PICTURE.exists() or PICTURE.read_text() != picture():
        sys.exit(f"{PICTURE.relative_to(ROOT)} is not current: python docs/draw_architecture.py")


if __name__ == "__main__":
    main()
