// Load test: a growing number of virtual users sends single texts and batches at the same time (https://k6.io).
//
//   k6 run k6_test.js
//   BASE_URL=http://127.0.0.1:8000 API_TOKEN=... DURATION_S=30 MAX_VUS=4 k6 run k6_test.js
//
// k6 ends with code 99 if a threshold is broken: too many errors, or a 95th percentile of latency over its limit.

import http from 'k6/http';
import { check } from 'k6';
import { Rate, Trend } from 'k6/metrics';

const API_TOKEN = __ENV.API_TOKEN || 'YOUR_BEARER_TOKEN_HERE'; // Replace with your actual token

const BASE_URL = __ENV.BASE_URL || 'http://127.0.0.1:8000';
const MODEL = __ENV.MODEL || 'sentence-transformers/all-MiniLM-L6-v2';
const BATCH_SIZE = number('BATCH_SIZE', 32); // texts in a batch
const MAX_VUS = number('MAX_VUS', 16); // most users with single texts; a quarter as many send batches
const DURATION_S = number('DURATION_S', 120);
const SINGLE_P95_MS = number('SINGLE_P95_MS', 2000);
const BATCH_P95_MS = number('BATCH_P95_MS', 10000);
const TIMEOUT_S = number('TIMEOUT_S', 30); // a request without an answer in this time is an error

const singleLatency = new Trend('single_latency', true);
const batchLatency = new Trend('batch_latency', true);
const errors = new Rate('errors');

export const options = {
  scenarios: { single: ramp('single', MAX_VUS), batch: ramp('batch', Math.ceil(MAX_VUS / 4)) },
  thresholds: {
    errors: ['rate<0.01'],
    single_latency: [`p(95)<${SINGLE_P95_MS}`],
    batch_latency: [`p(95)<${BATCH_P95_MS}`],
  },
  summaryTrendStats: ['count', 'med', 'p(95)', 'p(99)', 'max'],
};

export function single() {
  embed(text(), 1, singleLatency);
}

export function batch() {
  embed(Array.from({ length: BATCH_SIZE }, text), BATCH_SIZE, batchLatency);
}

function embed(input, nTexts, latency) {
  const headers = { 'Content-Type': 'application/json' };
  // This is a pattern, so that it does not change if you replace the placeholder everywhere in this file.
  if (!/^YOUR_.*_HERE$/.test(API_TOKEN)) {
    headers.Authorization = `Bearer ${API_TOKEN}`;
  }
  const body = JSON.stringify({ model: MODEL, input });
  const response = http.post(`${BASE_URL}/v1/embeddings`, body, { headers, timeout: `${TIMEOUT_S}s` });
  const vectors = vectorsOf(response);
  const passed = check(response, {
    'status is 200': () => response.status === 200,
    'as many vectors as texts': () => vectors.length === nTexts,
    'vectors of finite numbers': () => vectors.length > 0 && vectors.every(isVector),
  });
  errors.add(!passed);
  // A refusal is quick and would make the service look fast.
  if (passed) {
    latency.add(response.timings.duration);
  }
}

// Returns no vectors if the response cannot be parsed. An exception would end the iteration without counting an error.
function vectorsOf(response) {
  try {
    return response.json('data').map((item) => item.embedding);
  } catch {
    return [];
  }
}

function isVector(vector) {
  return Array.isArray(vector) && vector.length > 0 && vector.every(Number.isFinite);
}

// Returns 8 to 64 random words. All texts differ, so that no cache makes the service look faster.
function text() {
  return Array.from({ length: 8 + Math.floor(57 * Math.random()) }, word).join(' ');
}

function word() {
  return WORDS[Math.floor(WORDS.length * Math.random())];
}

// The number of users rises in three steps, stays after each step as long as the step took, and then falls.
function ramp(exec, peak) {
  const step = `${Math.round((DURATION_S * 1000) / 7)}ms`;
  const targets = [1, 1, 2, 2, 3, 3].map((third) => Math.ceil((peak * third) / 3));
  return {
    executor: 'ramping-vus',
    exec,
    startVUs: 1,
    stages: [...targets, 0].map((target) => ({ duration: step, target })),
    // Longer than the timeout, so that a request that hangs ends and counts as an error.
    gracefulRampDown: `${TIMEOUT_S + 5}s`,
    gracefulStop: `${TIMEOUT_S + 5}s`,
  };
}

function number(name, otherwise) {
  const value = Number(__ENV[name] || otherwise);
  if (!(value > 0)) {
    throw new Error(`${name}=${__ENV[name]} must be a number over 0`);
  }
  return value;
}

const WORDS = (
  'a above after all along and answer as at autumn bank because before black book bread bridge bright carry city ' +
  'clear cold copper count cross data day deep distance door early engine every far field fire five forest found ' +
  'garden glass green ground half harbour heavy history in island key language late letter light long machine ' +
  'market memory metal morning mountain narrow near night north number of old on open orange paper path people ' +
  'quiet rain reader red river road room salt school sea search seven ship short silver slow small snow song south ' +
  'station stone storm street summer table tall the three through time to tower train under valley vector voice ' +
  'warm water west white wind window winter with wood word year yellow young'
).split(' ');
