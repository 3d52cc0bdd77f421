"""Filters of one corpus of texts and pictures: which fields are read, and how lists join."""

import io
import tarfile

import numpy as np
import pytest

from jaxmm import cli
from jaxmm.cli_curate import options
from jaxmm.curation import keep_list


def run(*words):
  return cli.main(['curate', *map(str, words)])


@pytest.fixture
def tar(tmp_path):
  path = tmp_path / 'w.tar'
  with tarfile.open(path, 'w') as out:
    for i in range(6):
      for suffix, data in (('txt', b'word ' * (i + 1)), ('png', b'picture %d' % i)):
        info = tarfile.TarInfo(f'{i}.{suffix}')
        info.size = len(data)
        out.addfile(info, io.BytesIO(data))
  np.savez(tmp_path / 'x.npz', id=[f'w.tar:{i}' for i in range(6)], x=np.eye(6))
  return path


def of_pictures(tar, output, *fields):
  vectors = tar.parent / f'{output.name}.vectors'
  words = ['--encoder', 'brought', '--vectors', tar.parent / 'x.npz', '--output', vectors]
  assert run('embed', '--input', tar, *fields, *words) == 0
  words = ('--prefer', 'hard', '--keep', '0.5', '--clusters', '1', '--vectors', vectors)
  assert run('semdedup', *words, '--output', output) == 0


def test_filters_of_captions_and_of_pictures_join_where_both_fields_are_named(
  tar, tmp_path, capsys
):
  long_files = ('long_files', '--input', tar, '--max-tokens', '20', '--output')
  captions, pictures, both = (tmp_path / f'{n}.parquet' for n in ('captions', 'pictures', 'both'))
  of_pictures(tar, pictures, '--image-field', 'image')
  assert run(*long_files, captions) == 0
  for join in (
    ('combine', captions, 'and', pictures, '--output', both),
    ('semdedup', '--prefer', 'hard', '--keep', '0.5', '--after', captions, '--output', both,
     '--vectors', tmp_path / 'pictures.parquet.vectors'),
  ):  # fmt: skip
    assert run(*join) == 2
    said = capsys.readouterr().err
    assert 'ids are the same, but digests are of the fields that were named' in said
    assert 'make both with the same --text-field and --image-field' in said
  fields = ('--text-field', 'text', '--image-field', 'image')
  pictures = tmp_path / 'again.parquet'
  of_pictures(tar, pictures, *fields)
  assert run(*long_files, captions, *fields) == 0
  assert run('combine', captions, 'and', pictures, '--output', both) == 0
  assert len(keep_list.read(both)) == 6


@pytest.mark.parametrize(
  ('words', 'fields'),
  [
    ((), ('text', '')),
    (('--image-field', 'image'), ('', 'image')),
    (('--image-field', 'image', '--text-field', 'text'), ('text', 'image')),
    (('--text-field', 'body'), ('body', '')),
    (('--text-field', ''), ('', '')),
  ],
)
def test_which_fields_are_read(tar, words, fields):
  words = ['curate', 'report', 'k.parquet', '--input', str(tar), *words]
  inputs = options.corpus_of(cli._parser().parse_args(words))
  assert (inputs.text_field, inputs.image_field) == fields


def test_pictures_alone_need_no_field_of_texts(tar, tmp_path):
  of_pictures(tar, tmp_path / 'k.parquet', '--image-field', 'image')
  words = (tmp_path / 'k.parquet', '--input', tar, '--image-field', 'image')
  assert run('export', *words, '--output', tmp_path / 'out.parquet') == 0
