// Package imageservice is the image service of a node: it answers the ImageService of the CRI and
// pulls images. Each RPC is in the file of its name.
//
// It connects three packages. Package registry fetches manifests and blobs, package overlay keeps
// layers, and package imagestore keeps configurations and names. It knows nothing of containers. An
// image may be removed while containers use it, because a writable layer keeps its parents alive.
//
// # A pull
//
// Pull resolves the reference and fetches the configuration. For each layer that the store lacks it
// runs one pipeline: download, check of the blob's digest, decompression, extraction, check of the
// diff ID. It commits the layers base first, then records configuration and names. The invariants
// of package imagestore hold at every moment.
//
// # On disk
//
// Two caches, which may be deleted: cri/image-usage.json, the disk usage of each layer, and
// cri/container-usage.json, the disk usage of all writable layers together.
//
// # Concurrency
//
// All methods may be called concurrently. Pulls of the same reference with the same credentials are
// one pull. Pulls that share a layer fetch it once, unless another registry sends it slowly. A pull
// outlives its callers: after all have given up it continues under its own deadline, and the next
// caller joins it.
package imageservice
