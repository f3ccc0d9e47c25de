"""Your own classes: labeled images in, published weights that know them out.

data       files with labels -> one uint8 tensor in memory
report     DATA -> what trains and what is held out, and what is wrong with it
recipe     everything that decides the result, and its defaults
augment    a batch of stored images -> a batch of random training crops
team       the workers that share each batch
trainer    model, moving average, optimiser: steps, validation, checkpoints
loop       the training loop: seeded, resumable, alone or in a team
workers    the loop on several processes, by Ray Train
predict    labeled files -> scores, through the serving code
metrics    scores and the truth -> numbers; pictures draws them
calibrate  temperature and threshold, fitted on held-out images
evaluate   weights + labeled images -> numbers and pictures
publish    weights and card under a name of their own, in a folder or bucket
fit        the command that does it all
"""
