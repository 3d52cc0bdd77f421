"""Data: how do records become batches? The one data path, from files to `{name: array}`.

Here belong the sources (`sources` and its files), the store that jobs write and read
(`array_store`), the corpus that curation reads (`corpus`), its keep-lists applied to what is
trained on (`kept`), image transforms (`transforms`), packing of documents into rows (`packing`),
rows of bytes of files and pictures (`byte_files`, `byte_images`), rows of text and pictures
together (`captions`, `mixed`) and the chain that ties them (`pipeline`). Not here: whether an
example is worth keeping (`curation`), how a signal becomes ids (`tokenizers`), and anything about
devices (`sharding`, `train`). This room imports nothing of ours but `jaxmm.config`.
"""
