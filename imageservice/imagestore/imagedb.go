package imagestore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/atomicfile"
	"github.com/micarun/mica/internal/imageconfig"
)

// imagedb is the directory image/overlay2/imagedb: configurations by image ID. Its methods may be
// called concurrently for different IDs.
type imagedb struct{ dir string }

func (db imagedb) contentDir() string { return filepath.Join(db.dir, "content", "sha256") }

func (db imagedb) metadataDir() string { return filepath.Join(db.dir, "metadata", "sha256") }

// open makes the directories that dockerd expects.
func (db imagedb) open() error {
	for _, dir := range []string{db.contentDir(), db.metadataDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("open imagedb: %w", err)
		}
	}
	return nil
}

// list returns the IDs of all configurations. It removes temporary files that a crash left.
func (db imagedb) list() ([]digest.Digest, error) {
	entries, err := os.ReadDir(db.contentDir())
	if err != nil {
		return nil, fmt.Errorf("list imagedb: %w", err)
	}
	var ids []digest.Digest
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.Remove(filepath.Join(db.contentDir(), e.Name())); err != nil {
				return nil, fmt.Errorf("sweep imagedb: %w", err)
			}
			continue
		}
		id := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if id.Validate() == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// read returns the configuration of an image, checked against its ID. Errors: errdefs.ErrNotFound,
// errdefs.ErrDataLoss, errdefs.ErrOutOfRange if it is larger than imageconfig.MaxSize.
func (db imagedb) read(id digest.Digest) ([]byte, error) {
	data, err := readFile(filepath.Join(db.contentDir(), id.Encoded()), imageconfig.MaxSize)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("read configuration of image %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration of image %s: %w", id, err)
	}
	if got := digest.FromBytes(data); got != id {
		return nil, fmt.Errorf("read configuration of image %s: content has digest %s: %w", id, got, errdefs.ErrDataLoss)
	}
	return data, nil
}

// diffIDs returns the layers of a configuration that may exceed the limits; see
// imageconfig.DiffIDs. The error is errdefs.ErrOutOfRange if the configuration is larger than
// imageconfig.MaxForeignSize.
func (db imagedb) diffIDs(id digest.Digest) ([]digest.Digest, error) {
	data, err := readFile(filepath.Join(db.contentDir(), id.Encoded()), imageconfig.MaxForeignSize)
	if err != nil {
		return nil, fmt.Errorf("read diff IDs of image %s: %w", id, err)
	}
	return imageconfig.DiffIDs(data), nil
}

// write stores a configuration and returns its ID.
func (db imagedb) write(data []byte) (digest.Digest, error) {
	id := digest.FromBytes(data)
	if err := writeFile(filepath.Join(db.contentDir(), id.Encoded()), data, atomicfile.Options{Sync: true}); err != nil {
		return "", fmt.Errorf("write configuration of image %s: %w", id, err)
	}
	return id, nil
}

// touch records now as the time of the image's last tag.
func (db imagedb) touch(id digest.Digest, now time.Time) error {
	path := filepath.Join(db.metadataDir(), id.Encoded(), "lastUpdated")
	if err := writeFile(path, []byte(now.Format(time.RFC3339Nano)), atomicfile.Options{Sync: true}); err != nil {
		return fmt.Errorf("write tag time of image %s: %w", id, err)
	}
	return nil
}

// mark records that the image is a checkpoint of the container with that name.
func (db imagedb) mark(id digest.Digest, container string) error {
	if err := writeFile(db.markPath(id), []byte(container), atomicfile.Options{Sync: true}); err != nil {
		return fmt.Errorf("mark image %s as a checkpoint: %w", id, err)
	}
	return nil
}

// marked reports whether mark was called for the image.
func (db imagedb) marked(id digest.Digest) bool {
	_, err := os.Lstat(db.markPath(id))
	return err == nil
}

func (db imagedb) markPath(id digest.Digest) string {
	return filepath.Join(db.metadataDir(), id.Encoded(), "checkpoint")
}

// remove deletes configuration and metadata of an image. It is idempotent.
func (db imagedb) remove(id digest.Digest) error {
	err := removeFiles(filepath.Join(db.contentDir(), id.Encoded()), filepath.Join(db.metadataDir(), id.Encoded()))
	if err != nil {
		return fmt.Errorf("remove configuration of image %s: %w", id, err)
	}
	return nil
}
