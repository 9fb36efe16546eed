"""Says what Python's json makes of the lines of a file.

    python tests/interop/json_lines.py FILE FIELD

Prints a JSON list with one item a line: the SHA-256 of the text in UTF-8, "" for an empty text, "blank" for a line of white
space, or null where there is no text that UTF-8 can say.
"""

import hashlib
import json
import sys


def meaning(line, field):
    if not line.strip(b" \t\r\n"):
        return "blank"
    try:
        value = json.loads(line.decode("utf-8"))
        if not isinstance(value, dict) or not isinstance(value[field], str):
            return None
        text = value[field].encode("utf-8")
    except (ValueError, KeyError):  # what is no UTF-8, in either direction, is a ValueError
        return None
    return hashlib.sha256(text).hexdigest() if text else ""


def main():
    with open(sys.argv[1], "rb") as file:
        lines = file.read().split(b"\n")
    print(json.dumps([meaning(line, sys.argv[2]) for line in lines[:-1]]))


main()
