"""LAMBADA: say the last word of a passage, which takes the whole passage to guess (the paper's exact match).

    in my palm is a clear stone , and inside it is a small ivory statuette . a guardian angel . `` figured if you
    're going to be out at night getting hit by cars , you might as well have some backup . '' i look at him ,
    feeling stunned . like this is some sort of sign . but as i stare at harlin , his mouth curved in a confident
    grin , i do n't care about signs

The word is what follows the last space: nothing is added to the passage, and nothing taken from it but white space at
its very end. All of the text is the question: there is no part that could be left out without asking something else.

Two versions, which are never one number. ``lambada`` is the original (the row above), lower-cased and tokenised.
``lambada_openai`` is OpenAI's of the same passages, cased and untokenised.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import text


def to_example(row: Row) -> Example:
    """The passage up to its last space, and what follows. Raises ValueError where there is no text or no space."""
    # In a few rows the word brings an opening quotation mark or a line break of the passage with it. It stays, as in
    # every other count of this benchmark.
    passage, _, word = text(row, "text").rstrip().rpartition(" ")
    if not passage.strip():
        raise ValueError(f"text is {row['text']!r}: the word to say is what follows its last space, and it has none.")
    return Example(passage, f" {word}", (word,))


LAMBADA = Task(
    name="lambada",
    version=1,
    to_example=to_example,
    metrics=("exact_match",),
    worlds=("english",),
    dataset=Dataset(
        name="lambada",
        hub_id="cimec/lambada",
        subset="plain_text",
        revision="main",
        # The training split is 2,662 whole novels, no passages: finetuning takes the 4,869 validation passages.
        train="validation",
        test="test",
        fields=("text",),
    ),
)

LAMBADA_OPENAI = Task(
    name="lambada_openai",
    version=1,
    to_example=to_example,
    metrics=("exact_match",),
    worlds=("english",),
    dataset=Dataset(
        name="lambada_openai",
        hub_id="EleutherAI/lambada_openai",
        subset="default",
        revision="900124bf3b8235c6daf21033af9948b3f07346c4",
        train=None,  # the test passages alone were published: ``task.train_fraction`` carves rows from them
        test="test",
        fields=("text",),
    ),
)
