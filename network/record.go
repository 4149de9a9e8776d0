package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/micarun/mica/internal/jsonfile"
)

// record holds everything that is needed to remove an attachment. It is written before the
// attachment is made and never changed.
type record struct {
	PodID     string
	Name      string // for messages
	Namespace string
	Interface string
	NetNS     string
	// Config is the network configuration with all its plugins.
	Config json.RawMessage
	// Args and CapabilityArgs are the arguments that the plugins got.
	Args           [][2]string
	CapabilityArgs map[string]any `json:",omitempty"`
	// InProcess says that package builtin ran the plugins that it has. It is false for records of
	// versions without that package.
	InProcess bool `json:",omitempty"`
}

// String returns the pod's name for messages.
func (r record) String() string { return podString(r.Namespace, r.Name, r.PodID) }

// list parses the recorded network configuration.
func (r record) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(r.Config)
	if err != nil {
		return nil, fmt.Errorf("read recorded configuration: %w", err)
	}
	return list, nil
}

// runtimeConf returns the record in libcni's form. It leaves out a namespace that no longer exists,
// as the CNI specification requires for DEL.
func (r record) runtimeConf() *libcni.RuntimeConf {
	netns := r.NetNS
	if !isNamespace(netns) {
		netns = ""
	}
	return &libcni.RuntimeConf{
		ContainerID:    r.PodID,
		NetNS:          netns,
		IfName:         r.Interface,
		Args:           r.Args,
		CapabilityArgs: r.CapabilityArgs,
	}
}

// records is the directory of attachment records.
type records struct{ dir string }

func (r records) path(id string) string { return filepath.Join(r.dir, id+".json") }

func (r records) write(rec record) error {
	if err := jsonfile.Write(r.path(rec.PodID), rec); err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	return nil
}

// read returns the record of a pod, or fs.ErrNotExist if there is none.
func (r records) read(id string) (record, error) {
	var rec record
	if err := jsonfile.Read(r.path(id), &rec); err != nil {
		return record{}, fmt.Errorf("read attachment: %w", err)
	}
	return rec, nil
}

func (r records) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove attachment: %w", err)
	}
	return nil
}

// ids returns the IDs of all pods with a record, readable or not.
func (r records) ids() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
