// Numbers for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** 12345 -> "12,345". */
export const count = (number) => whole.format(number);

/** 1 -> "1 token", 2 -> "2 tokens". */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Three digits at most: 1234567 -> "1.23 MB". */
export function bytes(number) {
  let unit = 0;
  while (number >= 1000 && unit < UNITS.length - 1) [number, unit] = [number / 1000, unit + 1];
  return `${unit ? short(number) : count(number)} ${UNITS[unit]}`;
}

/** Three digits at most: 0.1234 -> "0.12", 12.34 -> "12.3", 1234 -> "1,234". */
export function short(number) {
  if (Math.abs(number) >= 99.95) return count(number);
  return number.toFixed(Math.abs(number) >= 9.995 ? 1 : 2);
}

/** 0.21 -> "0.21 s", 75 -> "1 min 15 s". */
export function seconds(number) {
  if (number < 60) return `${short(number)} s`;
  return `${Math.floor(number / 60)} min ${Math.round(number % 60)} s`;
}

/** Whole seconds or minutes: 5.2 -> "6 s", 75 -> "2 min". */
export const duration = (number) => (number < 60 ? `${Math.ceil(number)} s` : `${Math.ceil(number / 60)} min`);
