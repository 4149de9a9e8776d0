package podlog

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A pod with write access to its log directory cannot redirect a log or its reader to another file,
// and cannot block either.
func TestLogIsNotRedirected(t *testing.T) {
	const secret = "secret of the host\n"
	plant := func(act func(victim, dir string) error) func(*testing.T, string, string) {
		return func(t *testing.T, victim, dir string) {
			t.Helper()
			if err := act(victim, dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, put := range map[string]func(t *testing.T, victim, dir string){
		"file is a link": plant(func(victim, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "c"), 0o755), os.Symlink(victim, filepath.Join(dir, "c", "0.log")))
		}),
		"link to nothing": plant(func(victim, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "c"), 0o755), os.Symlink(victim+".new", filepath.Join(dir, "c", "0.log")))
		}),
		"directory is a link": plant(func(victim, dir string) error {
			return errors.Join(os.Rename(victim, filepath.Join(filepath.Dir(victim), "0.log")), os.Symlink(filepath.Dir(victim), filepath.Join(dir, "c")))
		}),
		"hard link": plant(func(victim, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "c"), 0o755), os.Link(victim, filepath.Join(dir, "c", "0.log")))
		}),
		"pipe": plant(func(_, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "c"), 0o755), unix.Mkfifo(filepath.Join(dir, "c", "0.log"), 0o666))
		}),
		"directory": plant(func(_, dir string) error { return os.MkdirAll(filepath.Join(dir, "c", "0.log"), 0o755) }),
	} {
		t.Run(name, func(t *testing.T) {
			outside, dir := t.TempDir(), t.TempDir()
			victim := filepath.Join(outside, "victim")
			if err := os.WriteFile(victim, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
			put(t, victim, dir)
			f := File{Dir: dir, Path: filepath.Join(dir, "c", "0.log")}
			_ = f.MakeDir()
			for what, open := range map[string]func() (*os.File, error){"append": f.Append, "create": f.Create, "read": f.Read} {
				if log, err := open(); err == nil {
					t.Errorf("%s opens %s", what, log.Name())
					_ = log.Close()
				}
			}
			found, err := filepath.Glob(filepath.Join(outside, "*"))
			if err != nil || len(found) != 1 {
				t.Fatalf("outside is %v, %v", found, err)
			}
			if got, err := os.ReadFile(found[0]); string(got) != secret || err != nil {
				t.Errorf("the file outside is %q, %v", got, err)
			}
		})
	}
}

// The path of the log directory may contain links. Directories below it are created.
func TestLogBelowTrustedLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "logs")); err != nil {
		t.Fatal(err)
	}
	f := File{Dir: filepath.Join(dir, "logs", "pod"), Path: filepath.Join(dir, "logs", "pod", "a", "b", "0.log")}
	if err := errors.Join(f.MakeDir(), f.MakeDir()); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"one\n", "two\n"} {
		log, err := f.Append()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.WriteString(line); err != nil {
			t.Error(err)
		}
		_ = log.Close()
	}
	log, err := f.Read()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if got, err := io.ReadAll(log); string(got) != "one\ntwo\n" || err != nil {
		t.Errorf("log is %q, %v", got, err)
	}
	if _, err := f.Create(); !errors.Is(err, os.ErrExist) {
		t.Errorf("create: %v", err)
	}
	if _, err := (File{Dir: dir, Path: filepath.Join(dir, "..", "x")}).Append(); err == nil {
		t.Error("Append opens a path outside the directory")
	}
}
