package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/micarun/mica/internal/atomicfile"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// record is container.json: what the next keeper must know about a container.
type record struct {
	ID string `json:"id"`
	// Create is the request. For an init process, only ID is set.
	Create wire.Create `json:"create"`
	Init   bool        `json:"init,omitempty"`
	// Pid is 0 during the creation.
	Pid int `json:"pid,omitempty"`
	// Started is the init's start time in clock ticks since boot. With Pid it identifies one
	// process.
	Started uint64 `json:"started,omitempty"`
	// Row is the container's row in the table.
	Row int `json:"row"`
	// Cgroup is the directory of the memory cgroup whose OOM counter is read.
	Cgroup string `json:"cgroup,omitempty"`
	// OOMKills is that counter's value at the creation.
	OOMKills uint64 `json:"oomKills,omitempty"`
}

// stateDir returns the container's directory below the runtime's root, "" if that is not known.
func (r record) stateDir() string {
	for i, arg := range r.Create.Runtime {
		if arg == "--root" && i+1 < len(r.Create.Runtime) {
			return filepath.Join(r.Create.Runtime[i+1], r.ID)
		}
	}
	return ""
}

const (
	recordName = "container.json"
	exitName   = "exit.json"
)

func (s *Server) path(id string, name ...string) string {
	return filepath.Join(append([]string{s.o.Dir, id}, name...)...)
}

// writeFile replaces path atomically. The directory is on a tmpfs, so fsync has no use.
func writeFile(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return atomicfile.Write(path, data, atomicfile.Options{})
}

func readFile(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// readRecords returns the records of an earlier keeper's containers, and their exits.
func (s *Server) readRecords() ([]record, map[string]*wire.Exit, error) {
	entries, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return nil, nil, err
	}
	var records []record
	exits := map[string]*wire.Exit{}
	for _, e := range entries {
		if !e.IsDir() || wire.CheckID(e.Name()) != nil {
			continue
		}
		var rec record
		err := readFile(s.path(e.Name(), recordName), &rec)
		if errors.Is(err, fs.ErrNotExist) || err == nil && rec.ID != e.Name() {
			_ = os.RemoveAll(s.path(e.Name())) // the keeper died before it wrote the record, or after it removed it
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		records = append(records, rec)
		var exit wire.Exit
		if err := readFile(s.path(e.Name(), exitName), &exit); err == nil {
			exits[rec.ID] = &exit
		}
	}
	return records, exits, nil
}

// procStat is the part of /proc/PID/stat that the keeper reads.
type procStat struct {
	state    byte
	started  uint64
	exitCode uint32 // a wait status; zombies only
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(data))
}

// parseStat counts fields after the process's name, which may contain spaces and parentheses.
func parseStat(stat string) (procStat, error) {
	i := strings.LastIndex(stat, ") ")
	if i < 0 {
		return procStat{}, errors.New("parse stat: no name")
	}
	f := strings.Fields(stat[i+2:]) // f[0] is field 3
	if len(f) < 50 || len(f[0]) != 1 {
		return procStat{}, errors.New("parse stat: too short")
	}
	started, err := strconv.ParseUint(f[22-3], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("parse stat: %w", err)
	}
	code, err := strconv.ParseUint(f[52-3], 10, 32)
	if err != nil {
		return procStat{}, fmt.Errorf("parse stat: %w", err)
	}
	return procStat{state: f[0][0], started: started, exitCode: uint32(code)}, nil
}
