"""Long inputs for encoder-decoder models: the encoder reads overlapping windows, cross attention fetches from them all.

settings = resolve(LongContextConfig(enabled=True), model)
text = encode_text(model, token_ids, settings)
model.generate(**generate_kwargs(model, text, settings), max_new_tokens=100, num_beams=4)
"""

from hsokv_ray.longcontext.encoder_decoder.encoding import append_text, encode_text
from hsokv_ray.longcontext.encoder_decoder.families import SUPPORTED, WINDOW, resolve
from hsokv_ray.longcontext.encoder_decoder.request import CrossRetrievalLayer, cross_cache, generate_kwargs
from hsokv_ray.longcontext.encoder_decoder.storage import load_encoded, save_encoded
from hsokv_ray.longcontext.encoder_decoder.text import EncodedText

__all__ = [
    "SUPPORTED",
    "WINDOW",
    "CrossRetrievalLayer",
    "EncodedText",
    "append_text",
    "cross_cache",
    "encode_text",
    "generate_kwargs",
    "load_encoded",
    "resolve",
    "save_encoded",
]
