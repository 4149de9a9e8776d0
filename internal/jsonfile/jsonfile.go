// Package jsonfile stores one JSON document in one file.
//
// A document is replaced as a whole (package atomicfile), so a reader gets either the old or the new
// one. There is no locking: the caller orders writers of the same path. Functions may be called
// concurrently for different paths.
package jsonfile

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/micarun/mica/internal/atomicfile"
)

// Write replaces the document at path by v, with mode 0600. The document survives a crash of the
// process at any point, but not a power failure. Use [WriteSync] for a document that must be on
// disk before the next step.
func Write(path string, v any) error { return write(path, v, false) }

// WriteSync is [Write], but returns only when the document and its directory entry are on stable
// storage.
func WriteSync(path string, v any) error { return write(path, v, true) }

// maxSize is the maximum size of a document that Read accepts: several times the largest CRI
// request, and enough for 300,000 image references.
const maxSize = 64 << 20

// Read decodes the document at path into v. For a missing file, the error wraps fs.ErrNotExist. A
// document of more than 64 MiB is an error.
func Read(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxSize {
		return fmt.Errorf("read %s: %d bytes are larger than the limit of %d", path, info.Size(), maxSize)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

func write(path string, v any, sync bool) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return atomicfile.Write(path, data, atomicfile.Options{Sync: sync})
}
