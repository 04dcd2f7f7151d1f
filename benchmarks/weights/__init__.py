"""How fast and in how much memory weights are merged and mutated: the figures of docs/performance.md.

python -m benchmarks.weights PART [--scratch FOLDER] [--layers 16] [--repeats 3]
  mergekit   merge of two experts against mergekit (in a virtual environment of its own), alternating
  local      merge, mutate and fused with local files, against a raw copy of the same bytes
  s3         merge, mutate and fused from and to SeaweedFS, against boto3's transfers of the same bytes
  memory     peak memory of merge and fused for 2, 4 and 8 layers, and for 2 layers of an 8B
  svd        the SVD mutation against torch.linalg.svd, a matrix shape at a time
  accuracy   the SVD mutation, and fp32's own SVD, against float64; the 128k rows of an embedding take minutes

Checkpoints with the shapes of Llama-3.2-1B (or of an 8B) are made under the scratch folder and kept for the next run.
Every measured run is a process of its own, whose peak memory is read from its rusage; contenders alternate, medians are
shown. What a GPU does is measured by `python -m benchmarks.gpu`.
"""
