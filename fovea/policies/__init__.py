"""Things that act: vision-language models, small networks on pixels, denoisers."""
