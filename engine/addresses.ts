/**
 * Addresses of IPv4 and IPv6: ranges of them, which of them webhooks may call, and from which one a request comes.
 *
 * `ipaddr.js` reads and compares them. Nothing here looks up a name.
 */
import ipaddr from "ipaddr.js";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** An address range: its first address, and how many leading bits count. */
export type AddressRange = readonly [Address, number];

/** Address ranges in CIDR notation, comma separated; an empty text is none. @param name of the setting; @throws Error with the one line to print */
export function readRanges(text: string, name = "PERE_HOOKS_ALLOW"): readonly AddressRange[] {
  const entries = text.split(",").map((entry) => entry.trim());
  return entries.filter((entry) => entry !== "").map((entry) => readRange(entry, name));
}

function readRange(text: string, name: string): AddressRange {
  if (ipaddr.IPv4.isValidCIDRFourPartDecimal(text)) return ipaddr.IPv4.parseCIDR(text);
  const range = ipaddr.IPv6.isValidCIDR(text) ? ipaddr.IPv6.parseCIDR(text) : null;
  // Addresses are compared as the IPv4 that they are, so a range in this form would let nobody through.
  if (range && !range[0].isIPv4MappedAddress()) return range;
  throw new Error(`${name} must be ranges like 10.0.0.0/8 or fd00::/8, comma separated, not "${text}"`);
}

const isAmong = (address: Address, ranges: readonly AddressRange[]): boolean =>
  ranges.some(([range, bits]) => range.kind() === address.kind() && address.match(range, bits));

/** What the registries have given out of IPv6 so far (RFC 4291, 2.4); ipaddr.js calls all the rest unicast, `::127.0.0.1` too. */
const GLOBAL_UNICAST = ipaddr.IPv6.parseCIDR("2000::/3");

/** Four bytes as an IPv4 address. */
const ipv4 = (bytes: readonly number[]): ipaddr.IPv4 => new ipaddr.IPv4([...bytes]);

/**
 * NAT64: what DNS64 makes of a name that has IPv4 alone (RFC 6052, 2.1). Prefixes of a network's own (RFC 8215), 6to4 and Teredo also carry IPv4
 * addresses, but where and which depends on that network: they are not public.
 */
const NAT64 = ipaddr.IPv6.parseCIDR("64:ff9b::/96");
const CARRIERS = ["64:ff9b:1::/48", "2002::/16", "2001::/32"].map((range) => ipaddr.IPv6.parseCIDR(range));

/** The address that is judged: a NAT64 address leads to the IPv4 address in it, whatever IPv6 ranges are allowed. */
const leadsTo = (address: Address): Address =>
  address.kind() === "ipv6" && address.match(NAT64) ? ipv4(address.toByteArray().slice(12)) : address;

/** Public, or allowed. */
export const isCallable = (text: string, allowed: readonly AddressRange[]): boolean =>
  ipaddr.isValid(text) && isGood(leadsTo(ipaddr.process(text)), allowed);

function isGood(address: Address, allowed: readonly AddressRange[]): boolean {
  if (address.kind() === "ipv6" && CARRIERS.some((range) => address.match(range))) return false;
  if (isAmong(address, allowed)) return true;
  return address.range() === "unicast" && (address.kind() === "ipv4" || address.match(GLOBAL_UNICAST));
}

/** The address that a host is without anybody being asked, or null when it is a name. */
export function literalAddress({ hostname }: URL): string | null {
  const host = hostname.replace(/^\[|\]$|\.+$/g, "");
  // No resolver needs to agree: RFC 6761, 6.3.
  if (host === "localhost" || host.endsWith(".localhost")) return "127.0.0.1";
  return ipaddr.isValid(host) ? host : null;
}

// -------------------------------------------------------------------------------------------------------------- callers

/** What one household, office or machine is given of IPv6, to take addresses from as it likes (RFC 6177, RFC 8981). */
const IPV6_BITS = 64;

/** An address as proxies write it, with a port or without: `192.0.2.1:443`, `[2001:db8::1]:443`. */
const WITH_PORT = /^(?:\[([^\]]*)\]|([^:]*))(?::\d+)?$/;

/** An IPv6 address that carries an IPv4 one is that one. Null: it is none. */
function readAddress(text: string): Address | null {
  const [, inBrackets, plain] = WITH_PORT.exec(text) ?? [];
  const bare = inBrackets ?? plain ?? text;
  const good = ipaddr.IPv4.isValidFourPartDecimal(bare) || ipaddr.IPv6.isValid(bare);
  return good ? ipaddr.process(bare) : null;
}

/** IPv6 by its network, as `2001:db8:1:2::/64`. */
function callerOf(address: Address): string {
  if (address.kind() === "ipv4") return address.toString();
  const { parts } = address as ipaddr.IPv6;
  const network = parts.map((part, n) => (n < IPV6_BITS / 16 ? part : 0));
  return `${new ipaddr.IPv6(network).toString()}/${IPV6_BITS}`;
}

/**
 * Whose address a request has, as the name of a caller: the socket's, or where that is a trusted proxy, the address that it was asked from. Each
 * proxy adds to the right of X-Forwarded-For who asked it, and anybody may have written what stands to the left of that: so the caller is
 * the rightmost one that is not itself a trusted proxy. Where it can't be read, the last proxy that could be is the caller.
 *
 * @param forwardedFor the header, as it came; several are one, comma separated
 */
export function addressOf(
  socketAddress: string,
  forwardedFor: string | null,
  proxies: readonly AddressRange[],
): string {
  let address = readAddress(socketAddress);
  if (address === null) return socketAddress;
  const forwarded = proxies.length === 0 || forwardedFor === null ? [] : forwardedFor.split(",");
  while (forwarded.length > 0 && isAmong(address, proxies)) {
    const before = readAddress(forwarded.pop()!.trim());
    if (before === null) break;
    address = before;
  }
  return callerOf(address);
}
