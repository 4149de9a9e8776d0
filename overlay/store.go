// Package overlay is the layer store.
package overlay

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
)

var errUnwritten = errors.New("not written yet")

// Options says where a store lives.
type Options struct {
	// Root is the data root: the directory that holds image/ and overlay2/.
	Root string
}

// Store is an open layer store. Its methods are safe for concurrent use.
type Store struct{}

// Open opens the store in o.Root, makes it when it is absent, locks it against
// other processes and sweeps what a crash left half-made.
func Open(ctx context.Context, o Options) (*Store, error) { return nil, errUnwritten }

// Close gives the lock back. Mounts stay.
func (s *Store) Close() error { return errUnwritten }

// Layer is a committed read-only layer; it never changes.
type Layer struct {
	ID      digest.Digest // chain ID
	Parent  digest.Digest // chain ID of the layer below, "" for a base
	DiffID  digest.Digest // digest of the uncompressed tar
	CacheID string        // name of the directory below overlay2
	Size    int64         // bytes as dockerd counts them: file sizes, hard links once
}

// Layer returns the layer with that chain ID, or errdefs.ErrNotFound.
func (s *Store) Layer(chain digest.Digest) (Layer, error) { return Layer{}, errUnwritten }

// Layers returns all layers ordered by chain ID.
func (s *Store) Layers() []Layer { return nil }

// Hold keeps a layer and its ancestors from Prune until release is called.
// It answers errdefs.ErrNotFound for a layer that is not there.
func (s *Store) Hold(chain digest.Digest) (release func(), err error) { return nil, errUnwritten }

// Reserve is Hold for chain IDs that need not exist yet: a pull reserves what
// it is about to commit, so that nothing is pruned between the commit and the
// image record.
func (s *Store) Reserve(chains ...digest.Digest) (release func()) { return nil }

// Draft is an extracted layer that is not visible yet. It belongs to the
// caller of Apply until it is committed or discarded.
type Draft struct {
	DiffID  digest.Digest // digest of the tar that was read
	Size    int64         // as Layer.Size
	CacheID string
}

// Discard removes the draft. It does nothing after a commit or a first call.
func (d *Draft) Discard() error { return errUnwritten }

// Apply extracts one uncompressed layer tar.
func (s *Store) Apply(ctx context.Context, tar io.Reader) (*Draft, error) { return nil, errUnwritten }

// Commit makes drafts visible on top of parent ("" for a base), base first.
func (s *Store) Commit(ctx context.Context, parent digest.Digest, drafts ...*Draft) ([]Layer, error) {
	return nil, errUnwritten
}

// Register applies one layer, checks that its diff ID is want ("" accepts any), and commits it.
func (s *Store) Register(ctx context.Context, parent, want digest.Digest, tar io.Reader) (Layer, error) {
	return Layer{}, errUnwritten
}

// RW is a writable layer.
type RW struct {
	ID, MountID, InitID string
	Parent              digest.Digest
}

// CreateArgs names a new writable layer.
type CreateArgs struct {
	ID     string        // the container's ID
	Parent digest.Digest // top layer of the image, "" for an empty root
}

// Create makes a writable layer with the init layer below it.
func (s *Store) Create(ctx context.Context, a CreateArgs) (RW, error) { return RW{}, errUnwritten }

// MountArgs says how to mount a writable layer.
type MountArgs struct {
	ID       string
	Volatile bool   // skip all syncs of the upper directory
	Label    string // SELinux context of every file, "" for none
	ReadOnly bool
}

// Mount mounts a writable layer and returns the path.
func (s *Store) Mount(ctx context.Context, a MountArgs) (path string, err error) {
	return "", errUnwritten
}

// Unmount undoes Mount; it is idempotent.
func (s *Store) Unmount(ctx context.Context, id string) error { return errUnwritten }

// Remove unmounts and deletes a writable layer; it is idempotent.
func (s *Store) Remove(ctx context.Context, id string) error { return errUnwritten }

// RWs returns all writable layers ordered by ID.
func (s *Store) RWs() []RW { return nil }

// Usage is what a writable layer takes on disk.
type Usage struct{ Bytes, Inodes uint64 }

// Usage measures the upper directory of a writable layer.
func (s *Store) Usage(ctx context.Context, id string) (Usage, error) { return Usage{}, errUnwritten }

// MountView mounts a read-only view of a layer and its ancestors at target; the caller unmounts it.
func (s *Store) MountView(ctx context.Context, chain digest.Digest, target string) error {
	return errUnwritten
}

// TarStream returns the layer's uncompressed tar, bit for bit.
func (s *Store) TarStream(ctx context.Context, chain digest.Digest) (io.ReadCloser, error) {
	return nil, errUnwritten
}

// Pruned says what Prune removed.
type Pruned struct {
	Layers []digest.Digest
	Bytes  int64
}

// Prune removes every layer that nothing needs.
func (s *Store) Prune(ctx context.Context, live []digest.Digest) (Pruned, error) {
	return Pruned{}, errUnwritten
}

// CheckOptions says how deep Check looks.
type CheckOptions struct{ Content bool }

// Problem is one finding of Check.
type Problem struct{ Path, What string }

// Check compares the store with its rules.
func (s *Store) Check(ctx context.Context, o CheckOptions) ([]Problem, error) {
	return nil, errUnwritten
}
