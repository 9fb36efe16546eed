"""Makes NotoSansSC-subset.otf, the font of the figures: Latin, Greek, Cyrillic, punctuation, kana, and GB 2312's hanzi.

    apt-get install fonts-noto-cjk && pip install fonttools==4.68.0
    python crates/view/assets/font/subset.py /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc
"""

import pathlib
import sys

from fontTools import subset
from fontTools.ttLib import TTFont

# In the collection of Debian 12 the faces are JP, KR, SC, TC, HK and their monospaced twins.
font = TTFont(sys.argv[1], fontNumber=2)
assert font["name"].getDebugName(1) == "Noto Sans CJK SC", font["name"].getDebugName(1)

wanted = set()
for first, last in [
    (0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x45F),  # Latin, Greek, Cyrillic
    (0x2010, 0x2027), (0x2030, 0x205E), (0x20A0, 0x20BF), (0x2100, 0x214F),  # punctuation, currencies, letterlike
    (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2423, 0x2423), (0x2460, 0x24FF), (0x2500, 0x25FF),  # arrows, maths, circled, boxes
    (0x3000, 0x30FF), (0xFF01, 0xFFEE),  # Chinese punctuation, kana, full width
]:
    wanted.update(range(first, last + 1))
for row in range(0xB0, 0xF8):
    for cell in range(0xA1, 0xFF):
        try:
            wanted.add(ord(bytes([row, cell]).decode("gb2312")))
        except UnicodeDecodeError:
            pass

options = subset.Options(hinting=False, layout_features=["kern", "ccmp", "mark", "mkmk"], name_IDs=[0, 1, 2, 4, 5, 6, 7, 8, 9, 13, 14], notdef_outline=True)
subsetter = subset.Subsetter(options)
subsetter.populate(unicodes=wanted)
subsetter.subset(font)
out = pathlib.Path(__file__).with_name("NotoSansSC-subset.otf")
font.recalcTimestamp = False
font.save(out)
print(out, out.stat().st_size, "bytes,", len(font.getBestCmap()), "characters")
