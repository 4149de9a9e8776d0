// Package imagestore keeps the images of a node on disk: configurations, names, and the registries
// from which their layers came. Docker's on-disk form of images is known only here. Package overlay
// keeps the layers themselves.
//
// # Invariants
//
//   - An image's ID is the sha256 of its configuration. The configuration is kept byte for byte.
//   - An image on disk is complete. Its layers are committed before its configuration is written, and
//     the configuration before repositories.json names it. A crash in between leaves layers, which
//     SweepAtStart removes, or an image without a name, but no name without an image.
//   - In memory is the data of each image that lists need. The configuration is read from the disk on
//     request.
//   - An image of another engine that exceeds the limits of package imageconfig is neither listed nor
//     found. It keeps its files and layers until it is removed by its ID.
//   - An image that lacks a layer counts as absent: it is neither listed nor found, and recording it
//     again repairs it.
//
// # On-disk form
//
// The form of dockerd's overlay2 image store, below the data root:
//
//	image/overlay2/repositories.json                                {"Repositories":{"<name>":{"<reference>":"<image ID>"}}}, familiar names
//	image/overlay2/imagedb/content/sha256/<hex>                     configuration of the image whose ID is sha256:<hex>
//	image/overlay2/imagedb/metadata/sha256/<hex>/lastUpdated        time of the last Tag, RFC 3339 with nanoseconds; absent after a mere pull
//	image/overlay2/imagedb/metadata/sha256/<hex>/parent             ID of the image that it was built on; builders write it
//	image/overlay2/imagedb/metadata/sha256/<hex>/checkpoint         name of the container of which the image is a checkpoint; only in Mica
//	image/overlay2/distribution/diffid-by-digest/sha256/<hex>       diff ID of a layer blob
//	image/overlay2/distribution/v2metadata-by-diffid/sha256/<hex>   JSON array of {Digest, SourceRepository, HMAC}, at most 50
//
// # Concurrency
//
// All methods of a [Store] may be called concurrently. Changes are made one after the other, first
// on disk and then in memory. Readers do not wait for the disk, except in Detail and Check.
package imagestore
