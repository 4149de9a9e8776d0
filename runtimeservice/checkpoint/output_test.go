package checkpoint

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestClaimOutput(t *testing.T) {
	dir, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{dir: true, full: false, filepath.Join(full, "x"): false, "relative": false, "": false, dir + "/none": false} {
		claim, err := ClaimOutput(path)
		if (err == nil) != ok || !ok && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", path, err)
		}
		if err != nil {
			continue
		}
		if _, err := ClaimOutput(path); !errdefs.IsUnavailable(err) {
			t.Errorf("claim a claimed directory: %v", err)
		}
		if err := claim.Close(); err != nil {
			t.Error(err)
		}
		if claim, err = ClaimOutput(path); err != nil {
			t.Errorf("claim a released directory: %v", err)
		}
		_ = claim.Close()
	}
}

func TestRefuseOptions(t *testing.T) {
	if err := RefuseOptions(map[string]string{"b": "", "a": ""}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("options: %v", err)
	}
	if err := RefuseOptions(nil); err != nil {
		t.Error(err)
	}
}

func TestSaveFile(t *testing.T) {
	dir := t.TempDir()
	room, err := Room(dir)
	if err != nil || room < 0 {
		t.Errorf("Room = %d, %v", room, err)
	}
	if _, err := Room(filepath.Join(dir, "missing")); err == nil {
		t.Error("Room of a missing directory")
	}
	hello := func(w io.Writer) error { _, err := io.WriteString(w, "hello"); return err }
	path := filepath.Join(dir, "file")
	if err := SaveFile(path, 5, hello); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "hello" {
		t.Errorf("content %q, %v", data, err)
	}
	if err := SaveFile(path, 5, hello); !errors.Is(err, os.ErrExist) {
		t.Errorf("SaveFile over a file: %v", err)
	}
	if err := SaveFile(path+"2", 4, hello); !errdefs.IsResourceExhausted(err) {
		t.Errorf("SaveFile above the limit: %v", err)
	}
}
