"""Train a ResNet-18 on your own classes: labeled images go in, calibrated and measured weights come out.

The files, in the order in which the images meet them:

data         labeled files -> one uint8 tensor in memory
split        DATA -> training, validation and test images, with warnings about them
recipe       hyperparameters and their defaults
augment      stored images -> random training crops
worker_group the processes that share each batch
trainer      model, moving average, optimizer: steps, validation, checkpoints
loop         the seeded, resumable training loop
distributed  the loop on several processes, by Ray Train
predict      labeled files -> scores, through the serving code
plots        learning curve, confusion matrix, reliability diagram, mistakes
calibrate    fit temperature and threshold on held-out images
evaluate     weights and labeled images -> metrics and plots
publish      copy weights and card into a registry
initial      the weights that training starts from
train        all of it: `serve-app train`

With a recipe file:

transfer_recipe the file
class_map    folders and archives of several sources -> photos with classes
features     photos -> outputs of a frozen backbone, cached on disk
head         features -> the last layer
judge        accuracy on sources that were left out, temperature, threshold
transfer     all of it: `serve-app train --recipe`
"""
