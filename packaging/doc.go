// Package packaging holds the files of an installation besides the executables: a configuration
// that explains every key, samples for crictl and kubeadm, the systemd units, manual pages, shell
// completions, and the Debian package that `make deb` builds. It contains only tests. They compare
// these files with the executables, and install the package.
package packaging
