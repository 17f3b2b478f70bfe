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
    utgrec='UTGRec: a tokenizer of words and pictures that is carried to other domains (Zheng et al. 2025)',
    gru4rec='GRU4Rec: a recurrent network over whole items (Hidasi et al. 2016)',
    caser='Caser: convolutions over the latest items, and the user (Tang and Wang 2018)',
    hgn='HGN: gates over the latest items, and the user (Ma, Kang and Liu 2019)',
    bert4rec='BERT4Rec: a transformer that fills gaps (Sun et al. 2019)',
    sasrec='SASRec: a causal transformer over whole items (Kang and McAuley 2018)',
    fmlp_rec='FMLP-Rec: learnt filters over the latest items (Zhou et al. 2022)',
    hstu='HSTU: attention without a softmax, and cosines (Zhai et al. 2024)',
    fdsa='FDSA: items and what they say, in two transformers (Zhang et al. 2019)',
    s3_rec='S3-Rec: a transformer pre-trained on four questions (Zhou et al. 2020)',
    mf='MF: a vector for each user and each item (Rendle et al. 2009)',
    lightgcn='LightGCN: vectors smoothed along the graph of users and items '
             '(He et al. 2020)')

__all__ = ['Catalogue', 'Dataset', 'Recommender', 'config_of', 'fit', 'load', 'methods', 'report', 'toyshop']

def __getattr__(name:str):
    if name not in _homes: raise AttributeError(f'module gentok has no attribute {name!r}')
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f'gentok.{_homes[name]}'), name)
    return value

def __dir__()->list[str]: return sorted({*globals(), *_homes})
