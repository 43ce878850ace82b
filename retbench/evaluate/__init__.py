"""Zero-shot and few-shot evaluation: continuations scored from shared prefixes, and lm-eval's tasks over them."""
