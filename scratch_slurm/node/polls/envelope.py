"""What is sealed of a poll: the question and its nonce, and an answer that is bound to it. Pure."""

import msgspec

from scratch_slurm.domain.errors import SealError, SealFault

PATH = "/v1/poll"
"""Where the station takes polls, with POST."""
NONCE_BYTES = 16


class Question(msgspec.Struct, frozen=True, tag="question"):
    """A node's."""

    nonce: bytes
    body: bytes


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """The station's; `nonce` is the question's, so that no other node, and not this one later, takes it."""

    nonce: bytes
    body: bytes


# Two decoders: a question that is sent back is no reply.
_questions = msgspec.msgpack.Decoder(Question)
_replies = msgspec.msgpack.Decoder(Reply)


def format_question(nonce: bytes, body: bytes) -> bytes:
    return msgspec.msgpack.encode(Question(nonce, body))


def parse_question(payload: bytes) -> Question:
    """Raises: SealError: ALTERED: it is none."""
    try:
        question = _questions.decode(payload)
    except msgspec.DecodeError as exc:
        raise SealError(f"a sealed message: is no question: {exc}", fault=SealFault.ALTERED) from exc
    if len(question.nonce) != NONCE_BYTES:
        raise SealError(
            f"a question: its nonce has {len(question.nonce)} bytes, not {NONCE_BYTES}", fault=SealFault.ALTERED
        )
    return question


def format_reply(question: Question, body: bytes) -> bytes:
    return msgspec.msgpack.encode(Reply(question.nonce, body))


def parse_reply(payload: bytes, nonce: bytes) -> bytes:
    """Give the body of the answer to the question with `nonce`.

    Raises: SealError: ALTERED: it is no answer; REPLAYED: it answers another question.
    """
    try:
        reply = _replies.decode(payload)
    except msgspec.DecodeError as exc:
        raise SealError(f"a sealed message: is no answer: {exc}", fault=SealFault.ALTERED) from exc
    if reply.nonce != nonce:
        raise SealError("an answer: is to another question", fault=SealFault.REPLAYED)
    return reply.body
