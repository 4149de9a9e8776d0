package node

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// ProportionalMemory is a process' proportional set size in KiB.
func ProportionalMemory(pid int) (float64, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			var kib float64
			_, err := fmt.Sscan(value, &kib)
			return kib, err
		}
	}
	return 0, fmt.Errorf("read memory of process %d: no Pss line", pid)
}
