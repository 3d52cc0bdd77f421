"""A folder of a tiny random BERT with a tokenizer of single letters, in Hugging Face's layout."""

import json
import pathlib

import numpy as np
import safetensors.numpy
import tokenizers

from tests.models.sentence_encoder_test import PUBLISHED
from tests.references import bert as reference

MAX_TOKENS = 10
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')


def write_bert(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
  """Letters a-z are ids 4-29; other words are unknown."""
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(PUBLISHED))
  limits = {'max_seq_length': MAX_TOKENS, 'do_lower_case': False}
  (folder / 'sentence_bert_config.json').write_text(json.dumps(limits))
  state = reference.random_state(np.random.default_rng(seed), PUBLISHED)
  safetensors.numpy.save_file(state, folder / 'model.safetensors')
  words = [*SPECIAL, *map(chr, range(ord('a'), ord('z') + 1))]
  vocab = {word: i for i, word in enumerate(words)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
  )
  tokenizer.enable_padding(length=32)  # published files ask for it, and it must be ignored
  tokenizer.save(str(folder / 'tokenizer.json'))
  return folder
