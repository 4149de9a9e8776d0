package overlay

// Limits of a layer. Beyond a limit, Apply returns errdefs.ErrInvalidArgument. All limits are far
// above the values of real images.
const (
	maxEntries    = 1 << 21  // entries of one tar
	maxDevices    = 1 << 12  // device nodes of one layer, whiteouts not counted
	maxPath       = 4096     // bytes of a name, a link target, or a path in the layer (PATH_MAX)
	maxName       = 255      // bytes of one component (NAME_MAX)
	maxLinks      = 40       // symbolic links in the path of one entry, as in the kernel
	maxRecord     = 8 << 20  // bytes of the headers of one entry, with PAX records and sparse maps
	maxAttributes = 256      // extended attributes of one entry
	maxAttribute  = 1 << 16  // bytes of one value (XATTR_SIZE_MAX)
	maxSparse     = 1 << 40  // total length of the sparse files of one layer, in bytes
	maxTrailer    = 64 << 20 // bytes after the end of the archive
	maxNames      = 64 << 20 // bytes of the names of all entries together
)

// Processor time of one operation, in nanoseconds. It includes the removal of a refused layer. The
// figures were measured on ext4 with a journal, on a busy server of 2020; an idle one takes about
// half.
const (
	costLayer     = 3_000_000 // create, parse, sync, commit and mount a layer, independent of its content
	costEntry     = 80_000    // parse a header; create a file, link, whiteout or device, set its metadata, remove it
	costDir       = 80_000    // beyond costEntry: create and remove a directory
	costMove      = 45_000    // beyond costEntry: move a replaced file to the directory shadow, or keep a file there
	costRepack    = 20_000    // read and write an item of tar-split again, after a repeated name
	costAttribute = 8_000     // set an extended attribute
	costFragment  = 8_000     // write a fragment of a sparse file
	costStep      = 100       // look up one component of a path
	costLookup    = 12_000    // look up a directory in one of the layers below
	costHeader    = 15        // parse, encode and compress a byte of headers
	costRecord    = 30        // the same for a byte beyond the first plainHeaders of an entry: PAX records
	costTransfer  = 20        // receive, hash and decompress a transferred byte
	costContent   = 3         // hash, check and write a byte of the tar, and decompress it from repetitive data
	costRaw       = 15        // encode and compress a byte of content that only tar-split keeps
)

// plainHeaders is the size of an ordinary entry's headers, in bytes.
const plainHeaders = 3 * tarBlock

// An image's maximum work grows with the transferred bytes of its layers; each blob counts once. An
// image of smallImage may take six seconds, with any compression. Decompressing empty blocks takes
// up to 0.2 s per megabyte and is not counted. Larger images may take more for each byte: layers of
// many small files need up to a third of that.
const (
	workFloor   = 4_000_000_000 // nanoseconds that every image may take
	workPerByte = 200           // nanoseconds more for each of the first smallImage transferred bytes
	workPerMore = 1_000         // nanoseconds more for each further byte

	smallImage = 10_000_000 // bytes
	slowRatio  = 20         // to which a layer in a slow format may be compressed in a larger image
)

// The maximum memory for names and link targets grows with the transferred bytes too. An entry of a
// real layer takes 50 bytes or more of the compressed tar.
const (
	keptFloor   = 32 << 20  // bytes that the layers of any image may use at a time
	keptPerByte = 2         // bytes more for each transferred byte of these layers
	maxKept     = 256 << 20 // maximum bytes of one layer

	keptFile    = 96  // a name and its hash
	keptLink    = 192 // a symbolic link without its target
	keptDir     = 384 // a directory with its table of names
	keptImplied = 64  // a directory without an entry, until the layer is committed
)
