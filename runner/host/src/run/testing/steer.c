/* A scheduler for tests of the loop: `mode` in its settings chooses what it asks for. It keeps up to 12 row ids.
 *   pass   skips three steps, ends the task, restores "init" and trains two epochs on the kept rows
 *   union  mixes the kept rows into the next task
 *   agem   joins the kept rows with a gradient of their own and projects the step's gradient on it
 *   greedy asks for a probe inside a step, which is refused */
#include "limbeck.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

LMB_MANIFEST("{\"abi\":[1,0],\"plugins\":[{\"id\":\"test.steer\",\"kind\":\"scheduler\",\"version\":\"1.0.0\"}]}")
typedef struct { lmb_plugin base; const lmb_host *host; int mode, active, asked, unused; int64_t kept, skipped, ids[12]; } steer;
enum { PASS = 1, UNION, AGEM, GREEDY };
static const DLDataType I64 = {kDLInt, 64, 1}, F32 = {kDLFloat, 32, 1};
static steer *self(const lmb_plugin *p) { return (steer *)p->self; }

static const lmb_port PORTS[2] = {
    {LMB_STR_INIT("row_ids"), LMB_STR_INIT("B"), {0, 0}, {0, 0}, &I64, 1, LMB_PORT_OPTIONAL, 0},
    {LMB_STR_INIT("student.logits"), LMB_STR_INIT("N,V"), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_OPTIONAL, 0}};
static lmb_status ports(const lmb_plugin *p, const lmb_port **out, uint64_t *num, lmb_error *e) {
  (void)p; (void)e;
  *out = PORTS; *num = 2;
  return LMB_OK;
}
static const lmb_group GROUP[1] = {{LMB_STR_INIT("ref"), 12, LMB_GROUP_JOIN | LMB_GROUP_OWN_GRAD, 0}};
static lmb_status plan(const lmb_plugin *p, lmb_schedule *out, lmb_error *e) {
  (void)e;
  out->events = LMB_EVENT_TASK_BEGIN | LMB_EVENT_STEP_BEGIN | LMB_EVENT_TASK_END | LMB_EVENT_PROBE;
  if (self(p)->mode == AGEM) {
    out->events |= LMB_EVENT_PROJECT;
    out->groups = GROUP;
    out->num_groups = 1;
  } else {
    out->claims = LMB_CLAIM_DATA | LMB_CLAIM_STUDENT;
  }
  return LMB_OK;
}
static lmb_status ask_rows(steer *s, const lmb_requests *r, int32_t mode, uint32_t epochs, lmb_str name, lmb_error *e) {
  int64_t shape[1] = {s->kept}, strides[1] = {1};
  lmb_tensor t = {LMB_STR("row_ids"), {s->ids, {kDLCPU, 0}, 1, I64, shape, strides, 0}, LMB_TENSOR_READ_ONLY, 0};
  lmb_rows rows = {sizeof rows, mode, epochs, name, &t, 1};
  return r->rows(r->self, &rows, e);
}
static void keep(steer *s, const lmb_event *ev) {
  for (uint64_t i = 0; i < ev->num_tensors; i++) {
    const lmb_tensor *t = &ev->tensors[i];
    if (!lmb_str_eq(t->name, LMB_STR("row_ids")) || (t->flags & LMB_TENSOR_ABSENT)) continue;
    for (int64_t k = 0; k < t->t.shape[0] && k < 4 && s->kept < 12; k++)
      s->ids[s->kept++] = ((const int64_t *)t->t.data)[k * t->t.strides[0]];
  }
}
static double inner(const lmb_event *ev, const lmb_tensor *a, const lmb_tensor *b) {
  double sum = 0;
  for (uint64_t i = 0; i < ev->num_params; i++) {
    int64_t n = 1;
    for (int32_t d = 0; d < a[i].t.ndim; d++) n *= a[i].t.shape[d];
    for (int64_t k = 0; k < n; k++) sum += (double)((float *)a[i].t.data)[k] * ((float *)b[i].t.data)[k];
  }
  return sum;
}
static lmb_status project(steer *s, const lmb_event *ev, lmb_error *e) {
  if (ev->num_grads != 2 || !lmb_str_eq(ev->grads[1].group, LMB_STR("ref")))
    return lmb_fail(s->host, e, LMB_INTERNAL, LMB_STR("the group's own gradient is missing"));
  const lmb_tensor *g = ev->grads[0].grads, *r = ev->grads[1].grads;
  if (g[0].flags & LMB_TENSOR_READ_ONLY) return lmb_fail(s->host, e, LMB_INTERNAL, LMB_STR("not writable"));
  double gr = inner(ev, g, r), rr = inner(ev, r, r);
  if (rr == 0) return lmb_fail(s->host, e, LMB_INTERNAL, LMB_STR("the group's gradient is zero"));
  if (gr >= 0) return LMB_OK;
  for (uint64_t i = 0; i < ev->num_params; i++) {
    int64_t n = 1;
    for (int32_t d = 0; d < g[i].t.ndim; d++) n *= g[i].t.shape[d];
    for (int64_t k = 0; k < n; k++) ((float *)g[i].t.data)[k] -= (float)(gr / rr) * ((float *)r[i].t.data)[k];
  }
  return LMB_OK;
}
static lmb_status on_event(const lmb_plugin *p, const lmb_event *ev, const lmb_requests *r, lmb_error *e) {
  steer *s = self(p);
  lmb_value yes = {LMB_VALUE_BOOL, 0, {1}};
  lmb_status status = LMB_OK;
  int ordinary = ev->phase.len == 0;
  if (ev->kind == LMB_EVENT_PROJECT) return s->asked ? project(s, ev, e) : LMB_OK;
  if (ev->kind == LMB_EVENT_STEP_BEGIN && ordinary) {
    if (s->mode == GREEDY) {
      lmb_probe probe = {sizeof probe, LMB_STR("p"), LMB_STR("student"), {0, 0}, NULL, 0, 0, 0};
      return r->probe(r->self, &probe, e);
    }
    s->asked = s->mode == AGEM && s->kept;
    if (s->asked) status = ask_rows(s, r, LMB_ROWS_STEP, 0, LMB_STR("ref"), e);
    if (!s->asked) keep(s, ev);
    if (s->mode == PASS && status == LMB_OK) status = r->set(r->self, LMB_STR("step.skip"), &yes, e);
    if (s->mode == PASS && status == LMB_OK && ++s->skipped % 3 == 0) status = r->set(r->self, LMB_STR("task.end"), &yes, e);
  }
  if (ev->kind == LMB_EVENT_TASK_BEGIN && s->mode == UNION && s->kept)
    status = ask_rows(s, r, LMB_ROWS_UNION, 0, LMB_STR("old"), e);
  if (ev->kind == LMB_EVENT_TASK_END && s->mode == PASS) {
    status = r->restore(r->self, LMB_STR("init"), e);
    if (status == LMB_OK) status = ask_rows(s, r, LMB_ROWS_PASS, 2, LMB_STR("fit"), e);
  }
  return status;
}
static const lmb_scheduler SCHEDULER = {sizeof(lmb_scheduler), plan, on_event};
static const void *iface(const lmb_plugin *p, lmb_str id) {
  (void)p;
  return lmb_str_eq(id, LMB_STR("lmb.scheduler/1")) ? &SCHEDULER : NULL;
}
static lmb_status activate(const lmb_plugin *p, const lmb_activate *a, lmb_error *e) {
  (void)a; (void)e;
  self(p)->active = 1;
  self(p)->kept = self(p)->skipped = 0;
  return LMB_OK;
}
static void deactivate(const lmb_plugin *p) { self(p)->active = 0; }
static lmb_status save(const lmb_plugin *p, const lmb_ctx *c, const lmb_writer *w, lmb_error *e) {
  (void)c; (void)e;
  const char *bytes = (const char *)&self(p)->kept;
  uint64_t n = sizeof(int64_t) * 14, done = 0;
  while (done < n) {
    int64_t k = w->write(w->self, bytes + done, n - done);
    if (k <= 0) return LMB_IO;
    done += (uint64_t)k;
  }
  return LMB_OK;
}
static lmb_status load(const lmb_plugin *p, const lmb_ctx *c, const lmb_reader *r, lmb_error *e) {
  (void)c; (void)e;
  char *bytes = (char *)&self(p)->kept;
  uint64_t n = sizeof(int64_t) * 14, done = 0;
  while (done < n) {
    int64_t k = r->read(r->self, bytes + done, n - done);
    if (k <= 0) return LMB_BAD_DATA;
    done += (uint64_t)k;
  }
  return LMB_OK;
}
static void destroy(const lmb_plugin *p) { free(p->self); }
static int has(lmb_str text, const char *word) {
  size_t n = strlen(word);
  for (uint64_t i = 0; i + n <= text.len; i++)
    if (!memcmp(text.ptr + i, word, n)) return 1;
  return 0;
}
static lmb_status create(const lmb_host *h, lmb_str id, lmb_str config, const lmb_plugin **out, lmb_error *e) {
  (void)e;
  if (!lmb_str_eq(id, LMB_STR("test.steer"))) return LMB_NOT_FOUND;
  steer *s = calloc(1, sizeof *s);
  s->host = h;
  s->mode = has(config, "pass") ? PASS : has(config, "union") ? UNION : has(config, "agem") ? AGEM : GREEDY;
  s->base = (lmb_plugin){sizeof(lmb_plugin), s, iface, ports, activate, deactivate, save, load, destroy};
  *out = &s->base;
  return LMB_OK;
}
static const lmb_str FEATURES[3] = {LMB_STR_INIT("scenario.class"), LMB_STR_INIT("scenario.domain"), LMB_STR_INIT("scenario.task")};
static const lmb_descriptor DESCRIPTOR = {
    sizeof(lmb_descriptor), LMB_KIND_SCHEDULER, 0, LMB_STR_INIT("test.steer"), LMB_STR_INIT("1.0.0"),
    LMB_STR_INIT("for tests"), LMB_STR_INIT("MIT"),
    LMB_STR_INIT("{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"mode\":{\"type\":\"string\",\"default\":\"pass\"}}}"),
    1ull << kDLCPU, FEATURES, 3, NULL, 0};
static const lmb_descriptor *descriptor(uint64_t i) { return i == 0 ? &DESCRIPTOR : NULL; }
static const lmb_module M = {sizeof(lmb_module), LMB_ABI_MAJOR, LMB_ABI_MINOR, LMB_STR_INIT("cc"), NULL, NULL, descriptor, NULL, create};
LMB_EXPORT const lmb_module *lmb_module_v1(const lmb_host *h) { return h->abi_major == LMB_ABI_MAJOR ? &M : NULL; }
