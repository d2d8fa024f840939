#!/bin/sh
# The whole life of a model, from text to answers, with the commands that a person would give.
#
#     sh launch/env.sh sh examples/life_of_a_model.sh [FOLDER] [FLAGS for both trainings ...]
#
# Seven minutes on 2 cores. Stopped and started again, it goes on where it was.
set -eu
cd "$(dirname "$0")/.."
out=${1:-runs/life}
[ $# -gt 0 ] && shift

# 1. Pretraining. The config names the text (pages about the world's countries, written from facts),
#    trains a tokenizer on it, packs its tokens into rows, and learns to continue them. Everything that
#    it leaves is in one folder.
python -m train.pretrain --config=configs/atlas.py --run="$out/base" "$@"

# 2. What is in that folder, and what the first step was trained on.
python -m apps.inspect --run="$out/base"
python -m apps.inspect --run="$out/base" --batch=0

# 3. How well it predicts text that it never saw, beside a compressor.
python -m evals.heldout --run="$out/base"

# 4. A model of web text continues a question, like its web does, with more questions.
python -m apps.generate --run="$out/base" --prompt='Qual é a capital do Brasil?' --max_new=32

# 5. Post-training. The same model goes on with questions and answers about *other* countries. Orbax
#    links the phases: tokenizer, architecture and parameters are the parent's.
python -m train.posttrain --config=configs/atlas_answers.py --config.parent="$out/base" \
    --run="$out/answers" "$@"

# 6. Now it answers, about countries that it was never asked about.
python -m apps.generate --run="$out/answers" --answer --prompt='Qual é a capital do Brasil?'
python -m evals.answers --run="$out/answers"

# 7. Where it comes from: the lineage names its parent, data and tokenizer by their hashes.
python -m apps.inspect --run="$out/answers"

# 8. The same vectors can find text by meaning: index a folder, and ask.
python -m apps.search index --run="$out/answers" --index="$out/index" docs
python -m apps.search query --index="$out/index" 'how do I resume a run'
