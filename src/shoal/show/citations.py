"""The papers that recipes name, as BibTeX, by arXiv number."""

from __future__ import annotations

BIBTEX: dict[str, str] = {
    "2403.19135": """\
@inproceedings{chen2025streamlining,
  title     = {Streamlining Redundant Layers to Compress Large Language Models},
  author    = {Chen, Xiaodong and Hu, Yuxuan and Zhang, Jing and Wang, Yanling and Li, Cuiping and Chen, Hong},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2403.19135}
}""",
    "2403.17887": """\
@inproceedings{gromov2025unreasonable,
  title     = {The Unreasonable Ineffectiveness of the Deeper Layers},
  author    = {Gromov, Andrey and Tirumala, Kushal and Shapourian, Hassan and Glorioso, Paolo and Roberts, Daniel A.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2403.17887}
}""",
    "2403.03853": """\
@inproceedings{men2025shortgpt,
  title     = {{ShortGPT}: Layers in Large Language Models are More Redundant Than You Expect},
  author    = {Men, Xin and Xu, Mingyu and Zhang, Qingyu and Yuan, Qianhao and Wang, Bingning and Lin, Hongyu and
               Lu, Yaojie and Han, Xianpei and Chen, Weipeng},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2025},
  year      = {2025},
  note      = {arXiv:2403.03853}
}""",
}


def bibtex(arxiv: str) -> str:
    """The entry of a paper; for a paper not in the table one that names its number and where it is."""
    entry = (
        f"@misc{{arxiv{arxiv.replace('.', '_')},\n  note = {{arXiv:{arxiv}}},\n  url  = {{https://arxiv.org/abs/{arxiv}}}\n}}"
    )
    return BIBTEX.get(arxiv, entry)
