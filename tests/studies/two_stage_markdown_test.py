"""A page's table is what the stages and the verdict hold, or there is none."""

import json

import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import claim_markdown, two_stage, two_stage_markdown
from jaxmm.studies.stages import write_json
from jaxmm.studies.verdict import Claim, Criterion, judge

BITS = Criterion('fewer | bits', 'bits_per_image', 'crt', 'base', 'below')
SHOWN = Criterion('than zero', 'bits_per_image', 'crt', 'zero', 'below', is_reported=True)


@pytest.fixture
def study(tmp_path):
  """A study's directory as `jaxmm reproduce` leaves it, with an old attempt beside."""
  for seed in (1, 2, 3):
    for arm, bits in (('base', 460.0), ('crt', 437.0), ('zero', 400.0)):
      of_tokenizer = {'mse': 0.045, 'psnr': 20.0, 'code_perplexity': 300.0, 'code_usage': 1.0}
      for stage, result in (
        ('tokenizer', of_tokenizer),
        ('image_model', {'bits_per_image': bits + seed}),
        ('reconstructions', {'frechet': 20.0 + seed}),
        ('samples', {'frechet': 30.0 + seed}),
        ('samples.old-1234', {'frechet': 99.0}),
      ):
        record = {'seconds': 10.0, 'result': result}
        write_json(tmp_path / f'seed-{seed}/{arm}/{stage}/result.json', record)
  found = {'setting': 'a.codes', 'size': 77, 'errors': {'512': 0.04}, 'target': 0.05, 'reason': ''}
  found['seeds'] = 1
  write_json(tmp_path / 'zero/result.json', {'seconds': 0.0, 'result': found})
  claim = Claim('crt', 'Better.', (BITS, SHOWN))
  verdict = judge(claim, two_stage.read_measurements(tmp_path))
  write_json(tmp_path / 'verdict.json', verdict.to_json())
  return tmp_path


def test_the_tables_hold_the_numbers(study):
  text = two_stage_markdown.markdown(study)
  lines = text.splitlines()
  assert lines[0].startswith('**Reproduced**: 1 of 1 criteria hold, 0 fail, 0 stay open (seeds 1, ')
  assert 'Control zero has a.codes=77: ' in lines[0] and 'took 6 min 00 s' in lines[0]
  # A bar in a cell would end it; arms come as the criteria name them.
  assert lines[4].startswith('| fewer   bits | 439 ± 1 (crt) | 462 ± 1 (base) | -23 |')
  assert lines[5].startswith('| than zero | 439 ± 1 (crt) | 402 ± 1 (zero) | 37 | 37 to 37 ')
  assert lines[5].endswith('| reported, not judged |')
  assert '1 more is reported, not judged.' in lines[0]
  assert '|  | base | crt | zero |' in lines
  assert '| Frechet distance of reconstructions | 22 (21 to 23)' in text
  assert 'lost by generating | 10 | 10 |' in text
  assert '| Frechet distance of samples | 32 (31 to 33) | 32 (31 to 33) | 32 (31 to 33) |' in lines
  widths = {line.count('|') for line in lines[2:6]}
  assert widths == {8}


def test_a_page_gets_them_between_its_marks(study, tmp_path):
  page = tmp_path / 'README.md'
  marks = claim_markdown.BEGIN, claim_markdown.END
  page.write_text('before\n{}\nold\n{}\nafter\n'.format(*marks))
  for _ in range(2):  # again it replaces itself
    two_stage_markdown.main([str(study), '--into', str(page)])
  text = page.read_text()
  assert text.startswith(f'before\n{marks[0]}\n\n**Reproduced') and 'old\n' not in text
  assert text.endswith(f'|\n\n{marks[1]}\nafter\n') and text.count('**Reproduced') == 1
  page.write_text('no marks')
  with pytest.raises(ConfigError, match='no section between'):
    claim_markdown.write_into(page, 'x')


def test_a_verdict_of_other_numbers_or_none_is_refused(study):
  path = study / 'seed-2/crt/image_model/result.json'
  write_json(path, {'seconds': 10.0, 'result': {'bits_per_image': 1.0}})
  with pytest.raises(ConfigError, match='rests on bits_per_image of arm crt'):
    two_stage_markdown.markdown(study)
  path.unlink()
  with pytest.raises(ConfigError, match='but the stages have .*None'):
    two_stage_markdown.markdown(study)
  (study / 'verdict.json').unlink()
  with pytest.raises(ConfigError, match='no verdict.json; run the whole claim'):
    two_stage_markdown.markdown(study)


def test_a_verdict_read_again_is_the_same(study):
  stored = json.loads((study / 'verdict.json').read_text())
  stored['findings'][0] |= {'low': None, 'observations': [None, 1.0, 2.0]}  # as not finite ones are
  again = claim_markdown.Verdict.from_json(stored)
  assert again.to_json() == stored and again.findings[0].low != again.findings[0].low
