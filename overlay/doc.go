// Package overlay is the layer store of a node. It keeps read-only image layers and the writable
// layers of containers, and mounts them with the kernel's overlay file system.
//
// It knows layers by chain ID and writable layers by the container's ID. It does not know images,
// references, registries or compression. The input of a layer is an uncompressed tar stream, and
// its output is the same stream, bit for bit.
//
// # On disk
//
// The layout below the data root is the one of dockerd's overlay2 driver. So a store can adopt
// dockerd's data root in place, and dockerd can read a store's:
//
//	overlay2/<cache-id>/diff       the files of one layer
//	overlay2/<cache-id>/link       its short name
//	overlay2/<cache-id>/lower      "l/A:l/B:…", the layers below, nearest first; absent in a base
//	overlay2/<cache-id>/work       overlay's work directory; absent in a base
//	overlay2/<cache-id>/committed  empty: the directory will never be an upper one
//	overlay2/<mount-id>-init       the init layer of a container, as a layer
//	overlay2/<mount-id>            the writable layer; merged is its mount point
//	overlay2/l/<short name>        a link to ../<cache-id>/diff, for short mount options
//	image/overlay2/layerdb/sha256/<chain ID>/{cache-id,diff,parent,size,tar-split.json.gz}
//	image/overlay2/layerdb/mounts/<ID>/{mount-id,init-id,parent}
//	image/overlay2/layerdb/tmp/write-set-*   entries being made or taken apart
//
// # Invariants
//
// A layer or a writable layer exists if layerdb has an entry for it. One rename adds or removes the
// entry; a layer's entry is added only after the layer's files are on stable storage. So a
// directory of overlay2 that no entry names is garbage. [Open] finds it and [Store.SweepAbandoned]
// removes it, on two conditions: the name has a form that dockerd or this package gives, and every
// entry could be read. Nothing else is ever removed: [Store.Check] reports it.
//
// A layer's parent exists as long as the layer does. Only one process at a time has a store open:
// it holds a flock on the directory overlay2.
//
// A layer is extracted without the layers below it, into a [Draft]. A tar may imply parent
// directories that it does not list. Commit copies their owner, mode, times and attributes from the
// layers below.
//
// [Store.Changes] writes a container's changes to its image as a tar, and [Store.ApplyChanges]
// applies them to another writable layer. Checkpoints of containers contain such a tar.
//
// The package needs Linux 5.8, root, and /proc.
package overlay
