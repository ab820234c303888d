"""A folder of images and label maps becomes the config of a run: ``segformer fit FOLDER``.

:mod:`~segformer.train.from_folder.plan` calls the other modules in this order: which files are
images and which are labels (``roles``), which form a pair (``arrangement``), in which split
(``splits``), of which classes (``labelling``), with which bands (``kinds``), trained how
(``recipe``).
"""
