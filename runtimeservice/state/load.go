package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/micarun/mica/internal/jsonfile"
)

// ErrNoRecord is the error for a directory without a record, or with an empty one. A killed daemon
// or a power cut leaves it of an object that no client has seen.
var ErrNoRecord = errors.New("there is no record")

// EachRecord calls load for every directory below root, until one call returns an error.
func EachRecord(root string, load func(dir string) error) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		if err := load(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// ReadPod reads the pod in dir. If its state is torn or missing, no client has got an answer about
// it or it is of an earlier boot: the pod is Creating. Errors: ErrNoRecord, and others if the
// record cannot be used.
func ReadPod(dir string) (*Pod, error) {
	var rec PodRecord
	if err := readRecord(dir, &rec); err != nil {
		return nil, err
	}
	if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
		return nil, errors.New("record of another pod")
	}
	p := newPod(dir, rec)
	if err := jsonfile.Read(filepath.Join(dir, StateFile), &p.state); err != nil {
		p.state = PodState{Phase: PodCreating}
	}
	return p, nil
}

// ReadContainer reads the container in dir. If it has no state, it is Creating. If its state is
// torn, a power cut has ended the container: it is Created, without the ID of this boot. Errors:
// ErrNoRecord, and others if the record cannot be used.
func ReadContainer(dir string) (*Container, error) {
	var rec ContainerRecord
	if err := readRecord(dir, &rec); err != nil {
		return nil, err
	}
	if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
		return nil, errors.New("record of another container")
	}
	c := newContainer(dir, rec)
	err := jsonfile.Read(filepath.Join(dir, StateFile), &c.state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.state = ContainerState{Ready: true}
	}
	if c.state.Phase() == Exited {
		close(c.exited)
	}
	return c, nil
}

// readRecord reads the record in a directory. If the record was never written completely, it
// returns ErrNoRecord.
func readRecord(dir string, rec any) error {
	path := filepath.Join(dir, RecordFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		return ErrNoRecord
	}
	return jsonfile.Read(path, rec)
}

// writeRecord writes a record to a new directory below root. After an error there is no directory.
func writeRecord(root, id string, rec any) (dir string, err error) {
	dir = filepath.Join(root, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if err := jsonfile.Write(filepath.Join(dir, RecordFile), rec); err != nil {
		_ = os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}
