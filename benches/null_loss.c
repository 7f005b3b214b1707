/* A loss that does nothing: what a call across the ABI costs when the plugin is free. Two input ports like those of
 * `limbeck.ce`, so that the views the host builds are the usual ones. Used by benches/abi.rs alone. */
#include <stdlib.h>
#include "limbeck.h"

LMB_MANIFEST("{\"abi\":[1,0],\"plugins\":[{\"id\":\"bench.null\",\"kind\":\"loss\",\"version\":\"1.0.0\"}]}")

static const DLDataType F32 = {kDLFloat, 32, 1}, I64 = {kDLInt, 64, 1};
static const lmb_port PORTS[2] = {
    {LMB_STR_INIT("student.logits"), LMB_STR_INIT("N,V"), {NULL, 0}, {NULL, 0}, &F32, 1, LMB_PORT_DIFFERENTIABLE, 0},
    {LMB_STR_INIT("labels"), LMB_STR_INIT("N"), {NULL, 0}, {NULL, 0}, &I64, 1, LMB_PORT_OPTIONAL, 0},
};

static lmb_status ports(const lmb_plugin *p, const lmb_port **out, uint64_t *num, lmb_error *e) {
  (void)p, (void)e;
  *out = PORTS;
  *num = 2;
  return LMB_OK;
}
static lmb_status plan(const lmb_plugin *p, const lmb_tensor *in, uint64_t n, uint64_t *bytes, lmb_error *e) {
  (void)p, (void)in, (void)n, (void)e;
  *bytes = 0;
  return LMB_OK;
}
/* The value must be written; one gradient entry is, to show that the buffer is there. */
static lmb_status compute(const lmb_plugin *p, const lmb_loss_call *c, lmb_error *e) {
  (void)p, (void)e;
  *(float *)c->value->t.data = 0.0f;
  if (!(c->grads[0].flags & LMB_TENSOR_ABSENT)) *(float *)c->grads[0].t.data = 0.0f;
  return LMB_OK;
}
static const lmb_loss LOSS = {sizeof(lmb_loss), NULL, plan, compute};

static const void *interface(const lmb_plugin *p, lmb_str id) {
  (void)p;
  return lmb_str_eq(id, LMB_STR("lmb.loss/1")) ? &LOSS : NULL;
}
static lmb_status activate(const lmb_plugin *p, const lmb_activate *a, lmb_error *e) {
  (void)p, (void)a, (void)e;
  return LMB_OK;
}
static void deactivate(const lmb_plugin *p) { (void)p; }
static void destroy(const lmb_plugin *p) { free(p->self); }

static const lmb_descriptor DESCRIPTOR = {
    sizeof(lmb_descriptor), LMB_KIND_LOSS, 0, LMB_STR_INIT("bench.null"), LMB_STR_INIT("1.0.0"),
    LMB_STR_INIT("does nothing"), LMB_STR_INIT("MIT OR Apache-2.0"),
    LMB_STR_INIT("{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}"),
    1ull << kDLCPU, NULL, 0, NULL, 0};
static const lmb_descriptor *descriptor(uint64_t index) { return index == 0 ? &DESCRIPTOR : NULL; }

static lmb_status create(const lmb_host *h, lmb_str id, lmb_str config, const lmb_plugin **out, lmb_error *e) {
  lmb_plugin *p = (lmb_plugin *)calloc(1, sizeof *p);
  (void)config;
  if (!p) return lmb_fail(h, e, LMB_OUT_OF_MEMORY, LMB_STR("calloc"));
  if (!lmb_str_eq(id, LMB_STR("bench.null"))) {
    free(p);
    return lmb_fail(h, e, LMB_NOT_FOUND, LMB_STR("only bench.null is here"));
  }
  p->struct_size = sizeof *p;
  p->self = p;
  p->get_interface = interface;
  p->ports = ports;
  p->activate = activate;
  p->deactivate = deactivate;
  p->destroy = destroy;
  *out = p;
  return LMB_OK;
}
static const lmb_module MODULE = {sizeof(lmb_module), LMB_ABI_MAJOR, LMB_ABI_MINOR, LMB_STR_INIT("cc"),
                                  NULL, NULL, descriptor, NULL, create};
const lmb_module *lmb_module_v1(const lmb_host *host) {
  (void)host;
  return &MODULE;
}
