package overlay

// What a layer may hold. A layer beyond a limit is refused with errdefs.ErrInvalidArgument; all are
// far above what images in the wild have.
const (
	maxEntries    = 1 << 21  // entries of one tar
	maxDevices    = 1 << 12  // device nodes of one layer, whiteouts not counted
	maxPath       = 4096     // bytes of a name, of a link target, or of a path in the layer (PATH_MAX)
	maxName       = 255      // bytes of one component (NAME_MAX)
	maxLinks      = 40       // symbolic links on the way to one entry, as in the kernel
	maxRecord     = 8 << 20  // bytes of the headers of one entry, with PAX records and sparse maps
	maxAttributes = 256      // extended attributes of one entry
	maxAttribute  = 1 << 16  // bytes of one value (XATTR_SIZE_MAX)
	maxSparse     = 1 << 40  // bytes that the sparse files of one layer may stand for
	maxTrailer    = 64 << 20 // bytes behind the end of the archive
	maxNames      = 64 << 20 // bytes of the names of all entries together
)

// Processor time that one thing takes, in nanoseconds, the removal of a refused layer included. The
// figures are measurements on ext4 with a journal, on a server of 2020 that was busy with other
// work: an idle one takes about half.
const (
	costLayer     = 3_000_000 // make, parse, sync, commit and mount a layer, whatever it holds
	costEntry     = 80_000    // parse a header, make a file, link, whiteout or device, describe and remove it
	costDir       = 80_000    // beyond costEntry: make and remove a directory
	costMove      = 45_000    // beyond costEntry: move what an entry replaces to the directory shadow, or keep a file there
	costRepack    = 20_000    // read and write an item of tar-split again, after a name that came twice
	costAttribute = 8_000     // set an extended attribute
	costFragment  = 8_000     // write a fragment of a sparse file
	costStep      = 100       // look up one component of a path
	costLookup    = 12_000    // look for a directory in one of the layers below
	costHeader    = 15        // parse, encode and compress a byte of headers
	costRecord    = 30        // do so with a byte beyond the first plainHeaders of an entry: PAX records
	costTransfer  = 20        // receive, hash and decompress a transferred byte
	costContent   = 3         // hash, check and write a byte of the tar, and decompress it if it is one of many alike
	costRaw       = 15        // encode and compress a byte of content that only tar-split keeps
)

// plainHeaders is what the headers of an ordinary entry take.
const plainHeaders = 3 * tarBlock

// The work of an image may grow with the bytes that were transferred for its layers, each blob
// counted once. An image of smallImage may take six seconds, whatever its compression.
// Decompressing blocks that hold nothing takes up to 0.2 s for each megabyte and is not counted.
// Larger images may take more for each byte: layers of many small files need up to a third of that.
const (
	workFloor   = 4_000_000_000 // nanoseconds that every image may take
	workPerByte = 200           // nanoseconds more for each of the first smallImage transferred bytes
	workPerMore = 1_000         // nanoseconds more for each further byte

	smallImage = 10_000_000 // bytes
	slowRatio  = 20         // to which a layer in a slow format may be compressed in a larger image
)

// The memory for names and link targets may grow with the transferred bytes too. Entries of real
// layers take 50 bytes of a compressed tar or more.
const (
	keptFloor   = 32 << 20  // bytes that the layers of an image may need at a time
	keptPerByte = 2         // bytes more for each byte that was transferred for these layers
	maxKept     = 256 << 20 // bytes for any layer

	keptFile    = 96  // a name and its hash
	keptLink    = 192 // a symbolic link without its target
	keptDir     = 384 // a directory with its table of names
	keptImplied = 64  // a directory without an entry, until the layer is committed
)
