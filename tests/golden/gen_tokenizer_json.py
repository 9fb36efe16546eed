"""Writes tests/golden/{byte_level,unigram,wordpiece}.json and their ids, tokenizer_json.json.

    pip install tokenizers==0.23.2 (or the newest)
    python3 tests/golden/gen_tokenizer_json.py

Three tiny tokenizers, one a family, trained on a few lines that are in this file. They carry what real files
carry: special tokens, truncation, padding, a post-processor.
"""
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
CORPUS = ["The quick brown fox jumps over the lazy dog.", "the lazy dogs jump over the quicker foxes",
          "数字变矩阵，文字变数字。", "小沈阳江西演唱会邀请了,", "naïve café déjà vu", "1234567890 0987654321"] * 4
TEXTS = ["the fox", " The  lazy\ndog\t", "小沈阳江西演唱会邀请了,", "café 数字", "😀 zebra", "", "a<|endoftext|>b", "[CLS] fox [SEP]"]


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(CORPUS, trainer)
    t.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    t.enable_truncation(4)
    t.enable_padding(pad_id=0, pad_token="<|endoftext|>", length=8)
    return t


def unigram():
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"], unk_token="<unk>",
                                                           show_progress=False))
    return t


def wordpiece():
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    t.add_tokens([AddedToken("zebra", normalized=False)])
    return t


golden = {"made_by": f"tests/golden/gen_tokenizer_json.py, tokenizers {tokenizers.__version__}", "cases": {}}
for make in (byte_level, unigram, wordpiece):
    t = make()
    t.save(str(HERE / f"{make.__name__}.json"), pretty=False)
    t.no_truncation()
    t.no_padding()
    cases = []
    for text in TEXTS:
        t.encode_special_tokens = True
        plain = t.encode(text, add_special_tokens=False).ids
        t.encode_special_tokens = False
        allowed = t.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "as_text": plain, "as_tokens": allowed, "decoded": t.decode(plain, skip_special_tokens=False)})
    golden["cases"][make.__name__] = {"rows": max(t.get_vocab(True).values()) + 1, "texts": cases}
(HERE / "tokenizer_json.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
