package spec

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ulimitNames returns the resources of setrlimit(2) in lower case, without RLIMIT_.
func ulimitNames() []string {
	return []string{
		"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
		"sigpending", "stack",
	}
}

// defaultUlimits returns the limits that containers get unless the configuration sets others. They
// are those of a systemd service with infinite LimitCORE and LimitNPROC. The soft limit of open
// files is low, since many programs close or poll every descriptor below it. Servers raise it to
// the hard limit.
func defaultUlimits() []specs.POSIXRlimit {
	const unlimited = math.MaxUint64
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_AS", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_CORE", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_CPU", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_DATA", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_FSIZE", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_MEMLOCK", Soft: 8 << 20, Hard: 8 << 20},
		{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1 << 20},
		{Type: "RLIMIT_NPROC", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_RSS", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_STACK", Soft: 8 << 20, Hard: unlimited},
	}
}

// WithDefaultUlimits adds the default limits to the configured ones, so that containers do not
// inherit the keeper's. Defaults are clamped to this process's hard limits, since no administrator
// requested more.
func WithDefaultUlimits(configured []specs.POSIXRlimit, h Host) []specs.POSIXRlimit {
	defaults := slices.DeleteFunc(defaultUlimits(), func(l specs.POSIXRlimit) bool {
		return slices.ContainsFunc(configured, func(c specs.POSIXRlimit) bool { return c.Type == l.Type })
	})
	h.RaiseRlimits = false
	return append(slices.Clone(configured), clampRlimits(defaults, h)...)
}

// ParseUlimits parses resource limits of the form "name=soft" or "name=soft:hard", as in
// "nofile=1024:524288". Numbers are in the unit of setrlimit(2); "unlimited" means no limit. Errors
// are ErrInvalidArgument.
func ParseUlimits(texts []string) ([]specs.POSIXRlimit, error) {
	var limits []specs.POSIXRlimit
	for _, text := range texts {
		name, values, ok := strings.Cut(text, "=")
		if !ok || !slices.Contains(ulimitNames(), name) {
			return nil, invalid("ulimit %q: not one of %s with a value", text, strings.Join(ulimitNames(), ", "))
		}
		softText, hardText, ok := strings.Cut(values, ":")
		if !ok {
			hardText = softText
		}
		soft, err := ulimit(softText)
		if err != nil {
			return nil, fmt.Errorf("ulimit %q: %w", text, err)
		}
		hard, err := ulimit(hardText)
		if err != nil {
			return nil, fmt.Errorf("ulimit %q: %w", text, err)
		}
		limit := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: soft, Hard: hard}
		switch {
		case soft > hard:
			return nil, invalid("ulimit %q: the soft limit is above the hard one", text)
		case slices.ContainsFunc(limits, func(l specs.POSIXRlimit) bool { return l.Type == limit.Type }):
			return nil, invalid("ulimit %q: %s is limited twice", text, name)
		}
		limits = append(limits, limit)
	}
	return limits, nil
}

func ulimit(text string) (uint64, error) {
	if text == "unlimited" {
		return math.MaxUint64, nil
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, invalid("%q is neither a number nor \"unlimited\"", text)
	}
	return v, nil
}
