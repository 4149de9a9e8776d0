package imageservice

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// locality says how near to the node an address is. A server may lead the node as near as the
// server itself is.
type locality int

// Greater is nearer.
const (
	public     locality = iota
	private             // of a network of the operator
	loopback            // of the node itself
	restricted          // link-local, metadata of clouds, multicast: nothing that a registry may lead to
)

// restrictedPrefixes are addresses at which clouds answer metadata and credentials to the node,
// besides link-local ones, and addresses that no server has.
func restrictedPrefixes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
		netip.MustParsePrefix("168.63.129.16/32"),   // Azure
		netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
		netip.MustParsePrefix("fd00:ec2::254/128"),  // AWS
		netip.MustParsePrefix("240.0.0.0/4"),        // reserved, RFC 1112
	}
}

// privatePrefixes are private networks that netip.Addr.IsPrivate does not know.
func privatePrefixes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/10"), // shared address space, RFC 6598
		netip.MustParsePrefix("192.0.0.0/24"),  // IETF protocol assignments, RFC 6890
		netip.MustParsePrefix("fec0::/10"),     // site-local, RFC 3879
	}
}

// localityOf returns how near an address is. An IPv6 address that stands for an IPv4 address counts
// as that.
func localityOf(addr netip.Addr) locality {
	addr = embeddedIPv4(addr.WithZone("").Unmap())
	in := func(prefixes []netip.Prefix) bool {
		for _, p := range prefixes {
			if p.Contains(addr) {
				return true
			}
		}
		return false
	}
	switch {
	case addr.IsLinkLocalUnicast() || addr.IsMulticast() || in(restrictedPrefixes()):
		return restricted
	case addr.IsLoopback() || addr.IsUnspecified() || addr.Is4() && addr.As4()[0] == 0:
		// Linux connects to itself for the unspecified address.
		return loopback
	case addr.IsPrivate() || in(privatePrefixes()):
		return private
	}
	return public
}

// embeddedIPv4 returns the address behind a NAT64 (RFC 6052) or 6to4 (RFC 3056) address, and any
// other one as it is.
func embeddedIPv4(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return addr
	}
	b := addr.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case netip.MustParsePrefix("2002::/16").Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}

// localityOfConn returns how near the server of an address in the form host:port is.
func localityOfConn(address string) locality {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return restricted
	}
	return localityOf(ap.Addr())
}

// literalLocality returns how near the host of a URL is as far as its text says: names count as
// public. It is for requests that a proxy makes for the node, where nothing is known about the
// address. A number that some resolvers read as an IPv4 address counts as restricted.
func literalLocality(u *url.URL) locality {
	host := u.Hostname()
	if addr, err := netip.ParseAddr(host); err == nil {
		return localityOf(addr)
	}
	if isLocalhost(host) || strings.HasSuffix(strings.ToLower(host), ".localhost") {
		return loopback
	}
	last := host[strings.LastIndex(strings.TrimSuffix(host, "."), ".")+1:]
	if _, err := strconv.ParseUint(strings.TrimSuffix(last, "."), 0, 64); err == nil {
		return restricted
	}
	return public
}

// origin returns scheme, host and port of a URL in one form.
func origin(u *url.URL) string { return strings.ToLower(u.Scheme) + "://" + hostPort(u) }

// hostPort returns the host and port of a URL in one form.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" && strings.EqualFold(u.Scheme, "https") {
		port = "443"
	} else if port == "" {
		port = "80"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
