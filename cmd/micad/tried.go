package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"github.com/micarun/mica/runtimeservice/oci"
)

// triedRuntimes is what trying the OCI runtimes out has shown. Trying takes most of a start's time,
// so the result is stored below the state directory and used by later starts under the same
// conditions.
type triedRuntimes struct {
	// Conditions are the trialConditions, as JSON.
	Conditions string `json:"conditions"`
	// Default is the handler for pods that name none.
	Default string `json:"default"`
	// Refusals say why handlers that the configuration prefers cannot be the default.
	Refusals []string `json:"refusals,omitempty"`
	// Confirmed says that two trials had these Refusals. One of them alone can have a passing cause,
	// such as a full disk or a node that is too slow after a boot.
	Confirmed bool `json:"confirmed,omitempty"`
	// Features are the features of the runtimes, by handler.
	Features map[string]features.Features `json:"features"`
}

// final reports whether later starts need no trial.
func (t triedRuntimes) final() bool { return t.Confirmed || len(t.Refusals) == 0 }

// trialConditions is what decides whether and how OCI runtimes run containers on this host.
type trialConditions struct {
	BootID     string
	Programs   map[string]string // identities of the files, by path
	Handlers   map[string]oci.Handler
	Candidates []string // for the default, in their order
	Host       trialHost
	Cgroups    cgroup.Mode
	Controllers,
	Driver, Parent string // of cgroups
}

// trialHost are facts of spec.Host.
type trialHost struct {
	Capabilities                             []string
	Seccomp, AppArmor, SELinux, RaiseRlimits bool
	OOMScoreAdjMin                           int
}

// libraries changes when shared libraries are installed or updated, which OCI runtimes may use.
const libraries = "/etc/ld.so.cache"

// triedRuntimes returns the result of an earlier trial if there is one under the same conditions.
// Otherwise it tries the installed runtimes, and stores the result.
func (n *node) triedRuntimes(ctx context.Context, c config.Config, installed map[string]oci.Handler) (triedRuntimes, error) {
	log := klog.FromContext(ctx)
	var candidates []oci.Handler
	for _, name := range c.DefaultRuntimes {
		if h, ok := installed[name]; ok {
			candidates = append(candidates, h)
		}
	}
	if len(candidates) == 0 {
		return triedRuntimes{}, fmt.Errorf("choose OCI runtime: none of %s is installed", strings.Join(c.DefaultRuntimes, ", "))
	}
	conditions, err := n.trialConditions(c, installed, candidates)
	if err != nil {
		return triedRuntimes{}, fmt.Errorf("choose OCI runtime: %w", err)
	}
	path := filepath.Join(c.StateDir, "probe", "result.json")
	var earlier triedRuntimes
	if err := jsonfile.Read(path, &earlier); err == nil && earlier.Conditions == conditions && earlier.final() {
		return earlier, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error(err, "Result of an earlier trial of OCI runtimes cannot be used")
	}
	tried, err := n.tryRuntimes(ctx, c, installed, candidates)
	if err != nil {
		return triedRuntimes{}, err
	}
	tried.Conditions = conditions
	tried.Confirmed = earlier.Conditions == conditions && slices.Equal(earlier.Refusals, tried.Refusals)
	if err := jsonfile.Write(path, tried); err != nil {
		log.Error(err, "The next start has to try the OCI runtimes again")
	}
	return tried, nil
}

// tryRuntimes tries the candidates for the default, and meanwhile asks all runtimes for their
// features. Features that a runtime does not report are missing in the result.
func (n *node) tryRuntimes(ctx context.Context, c config.Config, installed map[string]oci.Handler, candidates []oci.Handler) (triedRuntimes, error) {
	tried := triedRuntimes{Features: map[string]features.Features{}}
	var steps errgroup.Group
	steps.Go(func() error {
		name, refusals, err := n.chooseRuntime(ctx, c, candidates)
		for _, refusal := range refusals {
			tried.Refusals = append(tried.Refusals, refusal.Error())
		}
		tried.Default = name
		return err
	})
	steps.Go(func() error {
		for name, h := range installed {
			// An error is returned to the runtime service, which asks again.
			if f, err := oci.New(h, n.runtimeOptions()).Features(ctx); err == nil {
				tried.Features[name] = f
			}
		}
		return nil
	})
	return tried, steps.Wait()
}

// trialConditions returns the present conditions.
func (n *node) trialConditions(c config.Config, installed map[string]oci.Handler, candidates []oci.Handler) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	keeper, err := helper(c.Keeper.Binary, keeperName)
	if err != nil {
		return "", err
	}
	parent, err := n.cgroups.PodParent("", probeID)
	if err != nil {
		return "", err
	}
	conditions := trialConditions{
		BootID: strings.TrimSpace(string(boot)), Programs: map[string]string{}, Handlers: installed,
		Host: trialHost{
			Capabilities: n.host.Capabilities, Seccomp: n.host.Seccomp, AppArmor: n.host.AppArmor, SELinux: n.host.SELinux,
			RaiseRlimits: n.host.RaiseRlimits, OOMScoreAdjMin: n.host.OOMScoreAdjMin,
		},
		Cgroups: n.cgroups.Mode(), Driver: string(n.cgroups.Driver()), Parent: parent,
	}
	files := []string{"/proc/self/exe", keeper, libraries}
	for _, h := range installed {
		files = append(files, h.Path)
	}
	for _, h := range candidates {
		conditions.Candidates = append(conditions.Candidates, h.Name)
	}
	for _, path := range files {
		id, err := wire.FileID(path)
		if path == libraries && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		conditions.Programs[path] = id
	}
	if unified := conditions.Cgroups.Unified; unified != "" {
		// crun refuses hybrid hosts depending on them.
		controllers, err := os.ReadFile(filepath.Join(unified, "cgroup.controllers"))
		if err != nil {
			return "", err
		}
		conditions.Controllers = string(controllers)
	}
	text, err := json.Marshal(conditions)
	return string(text), err
}
