"Item tokenization for generative recommendation: `load` a log, `fit` a method, ask the `Recommender`"
__version__ = "0.1.0"

# name -> the module that has it; it is imported when the name is first used
_homes = dict(load='data.formats', report='data.formats', Catalogue='data.dataset', Dataset='data.dataset',
              toyshop='recommender', fit='recommender', config_of='recommender', Recommender='recommender')

methods = dict(
    tiger='TIGER: residual codes of item texts, and a transformer that writes them (Rajput et al. 2023)',
    mtgrec='MTGRec: pre-trained on the codes of several tokenizers, tuned on one (Zheng et al. 2025)',
    letter='LETTER: codes that heed behaviour and spread, and a loss with a temperature (Wang et al. 2024)',
    etegrec='ETEGRec: tokenizer and recommender learn together, by turns (Liu et al. 2025)',
    unitok='UniTok: one tokenizer with experts for several domains (2025)',
    utgrec='UTGRec: a tokenizer of words and pictures that is carried to other domains (Zheng et al. 2025)')

__all__ = ['Catalogue', 'Dataset', 'Recommender', 'config_of', 'fit', 'load', 'methods', 'report', 'toyshop']

def __getattr__(name:str):
    if name not in _homes: raise AttributeError(f'module gentok has no attribute {name!r}')
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f'gentok.{_homes[name]}'), name)
    return value

def __dir__()->list[str]: return sorted({*globals(), *_homes})
